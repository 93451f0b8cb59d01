"""Choice and sort by the compiler's own partial sort and sort, for accelerators and for meshes."""

import jax.numpy as jnp
from jax import lax

from pallas_kernels import target


def top_k(score_NE, k):
  """The ids of the k highest scores, the lower id first among equals.

  >>> top_k(jnp.array([[.1, .6, .3, .6]]), 3).tolist()
  [[1, 3, 2]]
  """
  score_NE = lax.stop_gradient(score_NE)
  if target.platform() == "cpu" and target.is_cut():
    return _rounds(score_NE, k)
  return lax.top_k(score_NE, k)[1]


def _rounds(score_NE, k):
  """The same for numbers: a CPU's partial sort would gather the scores of all devices."""
  id_1E, left_NE, ids = jnp.arange(score_NE.shape[1])[None], jnp.ones(score_NE.shape, bool), []
  for _ in range(k):
    best_N1 = jnp.max(score_NE, axis=1, keepdims=True, where=left_NE, initial=-jnp.inf)
    # an id beyond the last one would be that of a row of NaN
    id_N1 = jnp.min(
      id_1E, axis=1, keepdims=True, where=left_NE & (score_NE == best_N1), initial=id_1E.size - 1
    )
    left_NE &= id_1E != id_N1
    ids.append(id_N1)
  return jnp.concatenate(ids, axis=1)


def sort(expert_M, num_experts):
  """(order_M, place_M, size_E): rows by expert and in their order within one, where each went.

  Expert and row in one integer, where both fit, sort about three times faster than a stable sort.

  >>> [a.tolist() for a in sort(jnp.array([2, 0, 1, 0]), 2)]
  [[1, 3, 2, 0], [3, 0, 2, 1], [2, 1]]
  """
  M, row_M = len(expert_M), jnp.arange(len(expert_M), dtype=jnp.int32)
  if (num_experts + 1) * M < 2**31:
    order_M = jnp.sort(expert_M.astype(jnp.int32) * M + row_M) % M
  else:
    order_M = jnp.argsort(expert_M, stable=True).astype(jnp.int32)
  place_M = jnp.zeros_like(order_M).at[order_M].set(row_M, unique_indices=True)
  # bincount drops ids beyond its length
  return order_M, place_M, jnp.bincount(expert_M, length=num_experts)
