"""Variables of tiny models, drawn without compiling an initialiser."""

import jax
import jax.numpy as jnp
import numpy as np


def variables(init, draw: np.random.Generator, size: float = 0.5, spread: float = 0.1) -> dict:
  """What init() returns, with every parameter off its start: choices that are not even.

  `size` is the deviation of weights around 0, `spread` that of scales around 1.
  """

  def leaf(path, shape):
    collection, name = path[0].key, path[-1].key
    if collection != "params":
      start = np.arange(shape.shape[-2])[:, None] if name == "slot_ER" else 0
      return jnp.asarray(start + np.zeros(shape.shape), shape.dtype)
    value = draw.normal(size=shape.shape)
    value = 1 + spread * value if name.startswith("scale") else size * value
    return jnp.asarray(value, shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init))
