"""Expert parallelism without slots in two steps: a token crosses to a node once, then is spread.

Paper:  DeepSeek-AI 2024 (DeepSeek-V3), arXiv:2412.19437, whose kernels (DeepEP) send a token once
        to every node that has an expert of it.
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   between nodes one row per token and node that it needs, there and, already summed over the
        experts of the node, back; inside nodes one row per used choice. Gates and ids travel along,
        eight bytes a choice. The row of a token waits for its node's sum: less crosses, more steps.
        Room as for `ragged`, in both steps: `room` times what an even choice of experts would need.
Study:  configs/studies/dedup.py
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp

from moejax.core import cuts, dropless, exchange
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong
from moejax.core.rows import Rows
from pallas_kernels import routing


@dataclasses.dataclass(frozen=True)
class Config:
  inner: int | None = None  # owners in a node; None: of several axes of experts the last, or all
  room: float = 2.0

  def __post_init__(self):
    if self.room < 1:
      raise Wrong(f"dedup: room for {self.room} of the mean rows is too little; use at least 1.")
    if self.inner is not None and self.inner < 1:
      raise Wrong(f"dedup: nodes of {self.inner} owners cannot be; use at least 1.")


def run(plan, x_ND, experts, cfg):
  """To the node, to the expert; the node's sum, and home."""
  return cuts.run("dedup", functools.partial(local, cfg=cfg), cuts.whole(plan), x_ND, experts)


def nodes_of(E: int, k: int, nodes: int) -> float:
  """The nodes that k different experts, drawn evenly, lie on.

  >>> round(nodes_of(256, 8, 8), 2), nodes_of(8, 1, 4), nodes_of(8, 8, 4)
  (5.29, 1.0, 4.0)
  """
  return nodes * (1 - math.comb(E - E // nodes, min(k, E)) / math.comb(E, min(k, E)))


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  inner, E = cut.node(cfg.inner), plan.num_experts
  inside, across = cut.inside(inner), cut.across(inner)
  expert_nK, gate_nK = _choices(plan)
  (n, K), nodes = expert_nK.shape, across.owners
  need_nI, token_M, row_nI, id_MK = _to_nodes(expert_nK, E, nodes)
  way = lambda a_nX: Rows(a_nX, token_M, jnp.ones(len(token_M)), row_nI)
  size_E = jnp.bincount(jnp.where(expert_nK < 0, E, expert_nK).ravel(), length=E + 1)[:E]
  count_WE, sent_II = cut.gathered(size_E), across.gathered(need_nI.sum(0))

  def there_and_back(sizes, x_MD, gate_MK):
    def crossing(a_MX) -> typing.Any:
      return exchange.rows(a_MX, sent_II, sizes[0], across)

    x_RD, gate_RK = crossing(x_MD), crossing(gate_MK)
    id_RK = jax.lax.stop_gradient(crossing(id_MK.astype(jnp.float32))).astype(jnp.int32) - 1
    landed = TokenPlan(id_RK, gate_RK, E // nodes)
    rows, count_JE = dropless.ready(landed, x_RD, inside)
    y_RD = rows.combine(dropless.through(rows.x_MD(), count_JE, sizes[1], experts, inside))
    return exchange.rows(y_RD, sent_II.T, len(token_M), across)

  all_rows = cut.owners * n * K if isinstance(plan, TokenPlan) else plan.token_EC.size
  even, most = (n * nodes_of(E, K, nodes), n * K), (n * nodes, all_rows)
  little = tuple(dropless.rungs((cfg.room,), m, t)[0] for m, t in zip(even, most, strict=True))
  landing = sent_II.sum(0).max(), count_WE.reshape(cut.owners, cut.owners, -1).sum((0, 2)).max()
  full = (landing[0] > little[0]) | (landing[1] > little[1])
  spilled = cut.highest(full.astype(jnp.int32))
  branches = [functools.partial(there_and_back, sizes) for sizes in (little, most)]
  gate_MK = jnp.where(id_MK > 0, way(gate_nK).x_MD(), 0)
  y_MD = jax.lax.switch(spilled, branches[: 1 + (little != most)], way(x_nD).x_MD(), gate_MK)

  away_I = jnp.arange(nodes) != across.owner()
  away_nK = (expert_nK >= 0) & (expert_nK // (E // cut.owners) % inner != inside.owner())
  once = (jax.lax.axis_index(cut.tokens) == 0) & (little != most)
  sums = {
    "crossed": jnp.sum(need_nI & away_I[None]),  # rows between nodes, one way
    "forwarded": jnp.sum(away_nK),  # rows inside nodes
    "spilled": (spilled > 0) & once,
  }
  return way(x_nD).combine(y_MD), {name: v.astype(jnp.float32) for name, v in sums.items()}


def _to_nodes(expert_nK, E, nodes):
  """One row for every token and node that it needs, by node.

  (need_nI, token_M or -1, row_nI or M, id_MK: 1 + the id in the node, 0 for what is elsewhere).
  """
  (n, K), e = expert_nK.shape, E // nodes
  node_nK = jnp.where(expert_nK < 0, nodes, expert_nK // e)
  need_nI = jnp.any(node_nK[:, :, None] == jnp.arange(nodes)[None, None], axis=1)
  node_M = jnp.where(need_nI, jnp.arange(nodes)[None], nodes).ravel()
  order_M, place_M, _ = routing.sort(node_M, nodes)
  M = n * min(K, nodes)  # what is not needed lies behind
  node_M = node_M[order_M[:M]]
  token_M = jnp.where(node_M < nodes, order_M[:M] // nodes, -1)
  here_MK = (node_nK[token_M] == node_M[:, None]) & (token_M >= 0)[:, None]
  id_MK = jnp.where(here_MK, expert_nK[token_M] % e + 1, 0)
  return need_nI, token_M, jnp.where(need_nI, place_M.reshape(n, nodes), M), id_MK


def _choices(plan) -> tuple[jax.Array, jax.Array]:
  """(expert_nK, gate_nK), -1 for what is not used; where experts choose, K is E."""
  if isinstance(plan, TokenPlan):
    return jnp.where(plan.real_NK(), plan.expert_NK, -1), plan.gate_NK
  n, E = plan.num_tokens, plan.num_experts
  token_EC = jnp.where(plan.token_EC < 0, n, plan.token_EC)
  at = (token_EC, jnp.arange(E)[:, None])
  taken_nE = jnp.zeros((n, E), bool).at[at].set(True, mode="drop")
  return jnp.where(taken_nE, jnp.arange(E)[None], -1), plan.weights_NE()
