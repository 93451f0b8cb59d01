"""Numbers drawn in NumPy: to compile a draw, or a model's init, takes longer than most tests."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.lab import drawn


def normal(seed, *shape) -> jax.Array:
  """Standard normal numbers of a shape."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def variables(model, *args, seed=0):
  """What model.init(key, *args) has, every parameter off its start; nothing is compiled."""
  start = lambda: model.init(jax.random.key(0), *args)
  return drawn.variables(start, np.random.default_rng(seed), 0.3, 0.3)
