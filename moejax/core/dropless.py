"""Rows to the owners of their experts and back, however many there are: no slots, no drops."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.core import cuts, exchange
from moejax.core.rows import Rows
from pallas_kernels import routing


def ready(plan, x_nD: jax.Array, cut: cuts.Cut) -> tuple[Rows, jax.Array]:
  """(the rows of this device by expert, count_WE: rows of each owner for each expert)."""
  expert_M, token_M, gate_M = plan.rows()
  order_M, place_M, size_E = routing.sort(expert_M, plan.num_experts)
  row_NK = cuts.table(plan, place_M, token_M >= 0)
  return Rows(x_nD, token_M[order_M], gate_M[order_M], row_NK), cut.gathered(size_E)


def through(x_MD: jax.Array, count_WE: jax.Array, R: int, experts, cut: cuts.Cut) -> jax.Array:
  """y_MD, the rows as their experts leave them. An owner has room for R rows: see that it does."""
  count_WWe = count_WE.reshape(cut.owners, cut.owners, -1)
  sent_WW = count_WWe.sum(2)
  x_RD = experts.waiting(exchange.rows(x_MD, sent_WW, R, cut))
  x_RD = checkpoint_name(x_RD, "arrived")
  y_RD = _run(x_RD, count_WWe[:, cut.owner()], experts)
  return exchange.rows(y_RD, sent_WW.T, len(x_MD), cut)


def _run(x_RD, count_We, experts):
  """Rows that lie by source and then by expert, through their experts and back to their places."""
  W, e = count_We.shape
  R = len(x_RD)
  expert_We = jnp.broadcast_to(jnp.arange(e)[None], (W, e))
  ends = jnp.cumsum(count_We.ravel())
  at_R = jnp.searchsorted(ends, jnp.arange(R), side="right", method="scan_unrolled")
  expert_R = jnp.append(expert_We.ravel(), e)[at_R]  # e: nobody's
  order_R, place_R, size_e = routing.sort(expert_R, e)
  used_R = expert_R < e
  token_R = jnp.where(used_R, jnp.arange(R), -1)[order_R]
  row_R1 = jnp.where(used_R, place_R, R)[:, None]
  return experts.to_tokens(Rows(x_RD, token_R, jnp.ones(R), row_R1), size_e)


def rungs(rooms: tuple[float, ...], mean: float, most: int) -> tuple[int, ...]:
  """Rows that a buffer may have, in steps: `rooms` times the mean in multiples of 8, then all.

  >>> rungs((1.0, 2.0), 30, 1000), rungs((4.0,), 30, 64)
  ((32, 64, 1000), (64,))
  """
  sizes = {min(-(-int(room * mean) // 8) * 8, most) for room in rooms}
  return tuple(sorted(sizes | {most}))


def rung(needed: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
  """The first of the sizes that has room.

  >>> int(rung(jnp.array(33), (32, 64, 1000)))
  1
  """
  return jnp.sum(needed > jnp.array(sizes[:-1], jnp.int32))
