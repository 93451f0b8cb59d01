"""Moments of the optimiser in the memory of the host, from one step to the next.

Paper:  Ren et al. 2021 (ZeRO-Offload), arXiv:2101.06840; Kim et al. 2021 (Z-code M3),
        arXiv:2109.10465, which has E+Z-Off+M; Shen et al. 2022 (SE-MoE), arXiv:2205.10034.

Layer by layer they come to the device for their update and go back, while the parameters of the
layer are written over, so that neither moments nor updates of all layers are ever on the device.
The numbers are those of a run without it. The update itself runs on the device: Adam on the host's
cores, as ZeRO-Offload has it, is not built.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from moejax.core import axes

HOST = "pinned_host"


class InPlace(typing.NamedTuple):
  """An optax transformation that can also write over parameters and moments, layer by layer."""

  init: typing.Callable
  update: typing.Callable
  apply: typing.Callable  # (grads, state, params, good) -> (params, state); unchanged if not good


def placed(template):
  """The template of a train state with its moments on the host; those of vectors stay."""

  def one(path, leaf):
    name = getattr(path[-1], "key", "")
    if not leaf.shape or len(axes.letters(name)) < 2:
      return leaf
    there = leaf.sharding.with_memory_kind(HOST)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

  moved = jax.tree_util.tree_map_with_path(one, template.opt_state)
  return dataclasses.replace(template, opt_state=moved)


def is_away(leaf: jax.Array) -> bool:
  """Whether a traced array is in the memory of the host.

  >>> is_away(jnp.zeros(1))
  False
  """
  return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def near(tree):
  """A tree of traced arrays, all of them on the device."""
  here = lambda leaf: jax.device_put(leaf, jax.memory.Space.Device) if is_away(leaf) else leaf
  return jax.tree.map(here, tree)


def back(leaf: jax.Array, old: jax.Array) -> jax.Array:
  """A traced array, in the memory that the one it replaces has."""
  return jax.device_put(leaf, jax.memory.Space.Host) if is_away(old) else leaf


def written_over(fn, own: dict, given: dict) -> dict:
  """fn(own part, given part) for every part of a model, in the place of what it replaces.

  A run of layers is a loop over its layers, so that what is away is on the device for one of them.
  Parts of `given` are trees of arrays with as many layers, and of numbers, which all layers share.
  """

  def looped(own, given):
    def layer(i, own):
      new = fn(near(_layer(own, i)), near(_layer(given, i)))
      put = jax.lax.dynamic_update_index_in_dim
      return jax.tree.map(lambda old, one: put(old, back(one, old), i, 0), own, new)

    return jax.lax.fori_loop(0, len(jax.tree.leaves(own)[0]), layer, own)

  def whole(own, given):
    return jax.tree.map(lambda old, new: back(new, old), own, fn(near(own), near(given)))

  run = lambda name: looped if name.startswith("layers_") else whole
  return {name: run(name)(part, given[name]) for name, part in own.items()}


def _layer(tree, i):
  """Layer i of stacked leaves; numbers as they are."""
  at = jax.lax.dynamic_index_in_dim
  return jax.tree.map(lambda a: at(a, i, keepdims=False) if jnp.ndim(a) else a, tree)
