"""Numbers drawn in NumPy: to compile a draw, or a model's init, takes longer than most tests."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape) -> jax.Array:
  """Standard normal numbers of a shape."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def variables(model, *args, seed=0):
  """What model.init(key, *args) has, every parameter off its start; nothing is compiled."""
  draw = np.random.default_rng(seed)

  def leaf(path, shape):
    collection, name = path[0].key, path[-1].key
    if collection == "params":
      noise = 0.3 * draw.normal(size=shape.shape)
      return jnp.asarray(1 + noise if name.startswith("scale") else noise, shape.dtype)
    if name == "slot_ER":  # each expert in its own place
      return jnp.asarray(np.arange(shape.shape[-2])[:, None] + np.zeros(shape.shape), shape.dtype)
    return jnp.zeros(shape.shape, shape.dtype)

  shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
  return jax.tree_util.tree_map_with_path(leaf, shapes)
