"""Moments, and weights of experts, in the memory of the host from one step to the next.

Paper:  Ren et al. 2021 (ZeRO-Offload), arXiv:2101.06840; Kim et al. 2021 (Z-code M3),
        arXiv:2109.10465, which has E+Z-Off+M; Shen et al. 2022 (SE-MoE), arXiv:2205.10034.
Config: `train.offload`: "none"; "moments" (`optim.offload` is the same); "experts", who also leave
        the device, their gradients and averages with them.

Layer by layer moments come to the device for their update and go back, while the parameters of the
layer are written over, so that neither moments nor updates of all layers are ever on the device.
The weights of experts come in the layer that works with them (layers/moe.py), forward and once more
backward, where their gradient goes to the host; the compiler lets a transfer begin before what does
not need it, as attention. The numbers are those of a run without it, up to the order in which the
norm of gradients on the host is added up. The update itself runs on the device: Adam on the host's
cores, as ZeRO-Offload has it, is not built.
"""

import dataclasses
import typing

import jax
import optax

from moejax.core import axes, memory, tree
from moejax.core.plugin import Wrong


class InPlace(typing.NamedTuple):
  """An optax transformation that can also write over parameters and moments, layer by layer."""

  init: typing.Callable
  update: typing.Callable
  apply: typing.Callable  # (grads, state, params, good) -> (params, state); unchanged if not good


def of_run(cfg) -> str:
  """What is away in a run: the larger of what train.offload and optim.offload say."""
  away = cfg.train.offload
  if away == "experts" and (cfg.train.strict or cfg.model.remat == "none"):
    raise Wrong(
      f"train.offload: with experts on the host, train.strict is {cfg.train.strict} and model.remat"
      f" is {cfg.model.remat!r}, and 'none' keeps all experts on the device for the backward pass;"
      " set train.strict=False and model.remat=full, or train.offload=moments."
    )
  return "moments" if away == "none" and cfg.optim.offload else away


def placed(template, away: str, paths: list):
  """The template of a train state with what is away on the host; moments of vectors stay.

  `paths` are those of the layers with experts.
  """
  if away == "none":
    return template

  def sent(leaf):
    there = leaf.sharding.with_memory_kind(memory.HOST)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

  def moment(path, leaf):
    name = getattr(path[-1], "key", "")
    return leaf if not leaf.shape or len(axes.letters(name)) < 2 else sent(leaf)

  moments = jax.tree_util.tree_map_with_path(moment, template.opt_state)
  new = {"opt_state": moments}
  if away == "experts":
    new |= {"params": _without(template.params, paths, sent)}
    new |= {"ema": template.ema and _without(template.ema, paths, sent)}
  return dataclasses.replace(template, **new)


def _without(params, paths, sent):
  """The shapes of parameters with those of experts sent away."""
  for path in paths:
    owned = tree.at(params, path)
    mine = lambda name, leaf: not isinstance(leaf, dict) and axes.letters(name).startswith("E")
    owned = {name: sent(leaf) if mine(name, leaf) else leaf for name, leaf in owned.items()}
    params = tree.put(params, path, owned)
  return params


def norm(fn, first, *rest) -> jax.Array:
  """The norm of jax.tree.map(fn, first, *rest); of what is away, layer by layer."""
  if memory.any_away(first):
    return jax.numpy.sqrt(memory.squares(fn, first, *rest))
  return optax.tree.norm(jax.tree.map(fn, first, *rest))


def written_over(fn, own: dict, given: dict) -> dict:
  """fn(own part, given part) for every part of a model, in the place of what it replaces.

  A run of layers is a loop over its layers, so that what is away is on the device for one of them.
  Parts of `given` are trees of arrays with as many layers, and of numbers, which all layers share.
  """

  def whole(own, given):
    new = fn(memory.near(own), memory.near(given))
    return jax.tree.map(lambda old, new: memory.back(new, old), own, new)

  def one(name, part):
    if name.startswith("layers_"):
      return memory.written_over(fn, part, given[name])
    return whole(part, given[name])

  return {name: one(name, part) for name, part in own.items()}
