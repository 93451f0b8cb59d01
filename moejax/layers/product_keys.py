"""Product keys: the k best of n^2 slots for the price of 2 n scores, and what their rows cost.

A slot is a pair (i, j) of a key of each half, number i * n + j. PKM and PEER add the scores of the
halves; UltraMem multiplies them through a learnt core (layers/ultramem.py). Letters: Q the n keys
of one half, A the width of one half, P the rows of a table, one per slot.

Rows are gathered as [N, H K, width]. The gradient of a table is a scatter-add into zeros of the
table's size: with AdamW every row is read and written at every step, however few were used. That
is right for tables that fit beside the rest of the model; a sparse update is not built.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong


def check(name: str, cfg):
  """Refuses sizes that make no product keys."""
  for field in ("keys", "heads", "k", "key_width"):
    if getattr(cfg, field) < 1:
      raise Wrong(f"{name}: {field} is {getattr(cfg, field)}; it must be at least 1.")
  if cfg.k > cfg.keys:
    raise Wrong(f"{name}: k is {cfg.k}, and a half has {cfg.keys} keys; lower k, or raise keys.")
  if cfg.key_width % 2:
    raise Wrong(
      f"{name}: key_width {cfg.key_width} cannot be cut into two halves; use an even number."
    )


def reads(cfg) -> int:
  """Rows of its table that a token reads."""
  return cfg.heads * cfg.k


def flops(cfg, width: int) -> float:
  """Forward FLOPs per token of queries and of the scores of both halves."""
  return 2.0 * cfg.heads * cfg.key_width * (width + cfg.keys)


def best(score_NHQ: jax.Array, k: int) -> jax.Array:
  """The places of the k highest."""
  return routing.top_k(score_NHQ.reshape(-1, score_NHQ.shape[2]), k).reshape(
    *score_NHQ.shape[:2], k
  )


def take(value_NHQ: jax.Array, at_NHK: jax.Array) -> jax.Array:
  """Those at some places; a further axis of the values is kept."""
  at = at_NHK.reshape(*at_NHK.shape, *(1,) * (value_NHQ.ndim - 3))
  return jnp.take_along_axis(value_NHQ, at, axis=2)


def candidates(k: int) -> list[tuple[int, int]]:
  """The ranks of pairs that can be among the k highest sums: others have k pairs at least as high.

  >>> candidates(3)
  [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
  """
  return [(a, b) for a in range(k) for b in range(k) if (a + 1) * (b + 1) <= k]


def lookup(first_NHQ: jax.Array, second_NHQ: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """(score_NHK, slot_NHK) of the k highest sums over all pairs of keys, with no n^2 sums formed."""
  n = first_NHQ.shape[2]
  i_NHK, j_NHK = best(first_NHQ, k), best(second_NHQ, k)
  a, b = jnp.array(candidates(k)).T
  sum_NHP = take(first_NHQ, i_NHK)[:, :, a] + take(second_NHQ, j_NHK)[:, :, b]
  pick_NHK = best(sum_NHP, k)
  i_NHK, j_NHK = take(i_NHK, a[pick_NHK]), take(j_NHK, b[pick_NHK])
  return take(first_NHQ, i_NHK) + take(second_NHQ, j_NHK), i_NHK * n + j_NHK


def mix(weight_NHK: jax.Array, row_NHK: jax.Array, table_PF: jax.Array) -> jax.Array:
  """The weighted sum of a token's rows over all heads.

  >>> mix(jnp.array([[[1., 2.]]]), jnp.array([[[0, 1]]]), jnp.eye(2)).tolist()
  [[1.0, 2.0]]
  """
  N = len(weight_NHK)
  weight_NM = weight_NHK.reshape(N, -1).astype(table_PF.dtype)
  return jnp.einsum("NM,NMF->NF", weight_NM, table_PF[row_NHK.reshape(N, -1)])


def usage(slot_NHK: jax.Array, slots: int, valid_N: jax.Array | None) -> dict:
  """Sums: how often each slot was chosen, padding left out.

  >>> usage(jnp.array([[[0, 2]], [[2, 1]]]), 4, jnp.array([True, False]))["count_P"].tolist()
  [1.0, 0.0, 1.0, 0.0]
  """
  valid_N = jnp.ones(len(slot_NHK)) if valid_N is None else valid_N.astype(jnp.float32)
  one_NHK = jnp.broadcast_to(valid_N[:, None, None], slot_NHK.shape)
  return {"count_P": jnp.zeros(slots).at[slot_NHK].add(one_NHK)}


class Lookup(nn.Module):
  """Queries and keys, and the slots they choose; called `router`, so they stay in float32."""

  heads: int
  keys: int
  key_width: int
  k: int

  @nn.compact
  def __call__(self, x_ND):
    """-> (score_NHK, slot_NHK)."""
    first_NHQ, second_NHQ = (self._scores(half, x_ND) for half in "12")
    return lookup(first_NHQ, second_NHQ, self.k)

  def _scores(self, half, x_ND):
    A = self.key_width // 2
    query_NHA = queries(self, f"query{half}_DHA", x_ND, self.heads, A)
    key_HQA = self.param(f"key{half}_HQA", self._uniform, (self.heads, self.keys, A))
    return jnp.einsum("NHA,HQA->NHQ", query_NHA, key_HQA.astype(jnp.float32))

  def _uniform(self, key, shape):
    bound = self.key_width**-0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def queries(module, name: str, x_ND, heads: int, A: int) -> jax.Array:
  """One half of every head's query, in float32, since bfloat16 flips choices."""
  weight_DHA = params.weight(module, name, over="D", D=x_ND.shape[1], H=heads, A=A)
  return jnp.einsum("ND,DHA->NHA", x_ND.astype(jnp.float32), weight_DHA.astype(jnp.float32))
