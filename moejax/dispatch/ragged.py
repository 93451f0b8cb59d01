"""Expert parallelism without slots: each device sends every other the rows of its experts.

Paper:  Gale et al. 2022 (MegaBlocks), arXiv:2211.15841, for dropless experts; the exchange is XLA's
        ragged all-to-all (core/exchange.py).
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   one row per used choice, sent twice when its expert is elsewhere, and a table of counts. A
        device has room for `room` times the mean number of rows. If more come anywhere, that step
        runs a second program, which has room for all rows of all devices; `spilled` counts it.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp

from moejax.core import cuts, exchange
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong
from moejax.core.rows import Rows
from pallas_kernels import routing


@dataclasses.dataclass(frozen=True)
class Config:
  room: float = 2.0

  def __post_init__(self):
    if self.room < 1:
      raise Wrong(f"ragged: room for {self.room} of the mean rows is too little; use at least 1.")


def run(plan, x_ND, experts, cfg):
  """Sort by expert, send, run, send back, add up."""
  local = functools.partial(_local, cfg=cfg)
  return cuts.run("ragged", local, cuts.whole(plan), x_ND, experts)


def _local(plan, x_nD, experts, cut, cfg):
  expert_M, token_M, gate_M = plan.rows()
  (M, E), W = (len(expert_M), plan.num_experts), cut.owners
  order_M, place_M, size_E = routing.sort(expert_M, E)
  row_NK = cuts.table(plan, place_M, token_M >= 0)
  rows = Rows(x_nD, token_M[order_M], gate_M[order_M], row_NK)
  count_WE = cut.gathered(size_E)
  count_WWe = count_WE.reshape(W, W, E // W)
  sent_WW = count_WWe.sum(2)

  def there_and_back(R, x_MD) -> typing.Any:
    x_RD = exchange.rows(x_MD, sent_WW, R, cut.expert)
    y_RD = _run(x_RD, count_WWe[:, cut.owner()], experts)
    return exchange.rows(y_RD, sent_WW.T, M, cut.expert)

  most = W * (M if isinstance(plan, TokenPlan) else M // W)  # all rows of all devices
  little = min(-(-int(cfg.room * M) // 8) * 8, most)
  spilled = cut.highest(sent_WW.sum(0).max()) > little
  if little == most:
    y_MD = there_and_back(most, rows.x_MD())
  else:
    both = [lambda x_MD, R=R: there_and_back(R, x_MD) for R in (most, little)]
    y_MD = jax.lax.cond(spilled, *both, rows.x_MD())
  away = size_E.sum() - sent_WW[cut.owner(), cut.owner()]
  once = spilled & (jax.lax.axis_index(cut.tokens) == 0)
  sums = {"moved": away, "spilled": once, "received_max": sent_WW[:, cut.owner()].sum()}
  as_float = {name: value.astype(jnp.float32) for name, value in sums.items()}
  return rows.combine(y_MD), as_float


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
