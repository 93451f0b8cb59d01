"""Moments of the optimiser in the memory of the host, from one step to the next.

Paper:  Ren et al. 2021 (ZeRO-Offload), arXiv:2101.06840; Kim et al. 2021 (Z-code M3),
        arXiv:2109.10465, which has E+Z-Off+M; Shen et al. 2022 (SE-MoE), arXiv:2205.10034.

Layer by layer they come to the device for their update and go back. The numbers are those of a run
without it. The update itself runs on the device: Adam on the host's cores, as ZeRO-Offload has it,
is not built. Nor does the peak of a device fall yet: the updates of all layers are held in float32
until they are added, which outweighs what the moments free in small models.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import optax

from moejax.core import axes

HOST = "pinned_host"


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
  """A tree of traced arrays, on the device."""
  return jax.device_put(tree, jax.memory.Space.Device)


def back(leaf: jax.Array, old: jax.Array) -> jax.Array:
  """A traced array, in the memory that the one it replaces has."""
  return jax.device_put(leaf, jax.memory.Space.Host) if is_away(old) else leaf


def streamed(adam, clipped, grads, state: typing.Any, good):
  """adam.update(clipped(grads), state) part by part, with moments that change if it is `good`.

  A run of layers is a loop over its layers, so that the moments of one are on the device.
  """
  count = state.count

  def one(_, part):
    grads, mu, nu = part
    held = optax.ScaleByAdamState(count=count, mu=near(mu), nu=near(nu))
    step, new = adam.update(clipped(grads), held)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    mu, nu = jax.tree.map(back, (keep(new.mu, held.mu), keep(new.nu, held.nu)), part[1:])
    return None, (step, mu, nu)

  out = {}
  for name, part in grads.items():
    mine = (part, state.mu[name], state.nu[name])
    looped = name.startswith("layers_")
    out[name] = jax.lax.scan(one, None, mine)[1] if looped else one(None, mine)[1]
  step, mu, nu = ({name: parts[i] for name, parts in out.items()} for i in range(3))
  count = optax.safe_increment(count)
  return step, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)
