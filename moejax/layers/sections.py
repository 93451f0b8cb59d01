"""Sections of a model of which only some are on the device: the next one comes while one works.

Paper:  Shen et al. 2022 (SE-MoE), arXiv:2205.10034 (ring memory).
        Differs from the paper: the sections that stay are arguments of the program and not slots
        that are written over, so that the host need not hold them, too.
"""

import jax
import jax.numpy as jnp


def through(section, near, far, x):
  """x through all sections in order: those of `near`, then those of `far`.

  section(weights, x) -> x. Leaves of near are [K, ...] on the device, K at least 1; those of far
  are [N - K, ...] in host memory, of the kind moejax.core.memory.HOST. Besides `near`, the
  device has the section that works and the one that comes.

  >>> double = lambda w, x: 2 * x + w
  >>> far = jnp.array([4.0])  # in the memory of the device here, which changes no number
  >>> float(through(double, jnp.array([1.0, 2.0]), far, jnp.float32(0)))
  12.0
  """
  step = lambda x, weights: (section(weights, x), None)
  x, _ = jax.lax.scan(step, x, jax.tree.map(lambda leaf: leaf[:-1], near))
  ready = jax.tree.map(lambda leaf: leaf[-1], near)

  def work_and_fetch(carry, coming):
    x, ready = carry
    coming = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), coming)
    return (section(ready, x), coming), None

  if jax.tree.leaves(far) and len(jax.tree.leaves(far)[0]):
    (x, ready), _ = jax.lax.scan(work_and_fetch, (x, ready), far)
  return section(ready, x)


def split(weights, K: int):
  """(near, far) of stacked weights [N, ...]: the first K sections and the rest, where they are."""
  take = lambda part: jax.tree.map(lambda leaf: jnp.asarray(leaf[part]), weights)
  return take(slice(K)), take(slice(K, None))
