"""UltraMem: memory looked up through Tucker-decomposed keys, each slot a rank-1 expert.

Paper:  Huang et al. 2024 (UltraMem), arXiv:2411.12364; Huang et al. 2025 (UltraMemV2),
        arXiv:2508.18756.
Plan:   none: rows are looked up by index.   State: router_state u_R, v_R of the lookup.
Tokens: independent.   Causal: yes.
Study:  configs/studies/memory_vs_moe.py
Sums:   count_P, choices by slot.
Cost:   per token 2 heads key_width (width + rank n) FLOPs for the scores, heads k^2 rank for the
        grid, and heads k rows.
Differs from the paper: every head has queries of its own (there two heads share a half); no
implicit value expansion; the losses on the core's lesser singular values (off in the authors' code)
and on the balance of keys are not built.

A key of a half has R components, a pair of keys the score S1[i] C S2[j] with a learnt core C.
Pairs are found through C's best rank-1 part u v^T: the k highest of S1 u and of S2 v, then the true
scores of those k * k. The search looks at high with high only, as in the paper: it is exact where C
has rank 1 and these products are not negative (two low ones would multiply to a high score). u and
v follow C after every step, each with the sign that it had. C may be several cores: their sum
chooses, and each of them weighs its own part of the value. Scores are used raw, with no softmax.
With R = 1 and C = [[1]] scores are products S1[i] S2[j], where PKM has sums.

UltraMemV2 is a shared `table` with `pre`: a row's weight is multiplied by <W x, U[row]>, and the
layer stands beside the FFN of every block (blocks/memory.py). Its values learn at 4 to 1 times the
rate: optim.rules = [dict(match="P", schedule=dict(name="linear", peak=4, end=1))].
"""

import dataclasses
import typing
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params
from moejax.core.plugin import Wrong
from moejax.layers import basic, peer, product_keys
from moejax.layers import table as tables


@dataclasses.dataclass(frozen=True)
class Config:
  table: typing.Any  # layers/table.py
  keys: int = 64  # n, of each half; a layer sees n^2 slots
  heads: int = 1
  k: int = 16  # slots of a head
  key_width: int = 32  # of a query, both halves
  rank: int = 2  # components of a key
  cores: int = 2
  activation: Literal["gelu", "identity"] = "identity"  # of <W x, U[row]>

  def __post_init__(self):
    product_keys.check("ultramem", self)
    tables.check("ultramem", self.table, self.keys**2)
    if self.rank < 1 or self.cores < 1 or self.table.width % self.cores:
      raise Wrong(
        f"ultramem: rank is {self.rank}, and {self.cores} cores cannot share values of width"
        f" {self.table.width}; use a rank of at least 1, and cores that divide table.width."
      )


reads = product_keys.reads


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token: queries, scores of halves, the grid, rows, and the ways in and out."""
  F, R, r, K = cfg.table.width, cfg.table.pre, cfg.rank, cfg.k
  halves = 2.0 * cfg.heads * cfg.key_width * (width + r * cfg.keys)
  search = 2.0 * cfg.heads * (2 * r * cfg.keys + K * r * r + K * K * r)
  weigh = 2.0 * reads(cfg) * cfg.cores * (r * r + r)
  return halves + search + weigh + 2.0 * (reads(cfg) + width) * (F + R)


def lookup(first_NHQR, second_NHQR, core_CRR, u_R, v_R, k: int):
  """(score_NHKC, slot_NHK) of the pairs of highest score among those that u and v retrieve."""
  n = first_NHQR.shape[2]
  fixed = jax.lax.stop_gradient
  i_NHK = product_keys.best(fixed(first_NHQR) @ u_R, k)
  j_NHK = product_keys.best(fixed(second_NHQR) @ v_R, k)
  left_NHKR = product_keys.take(fixed(first_NHQR), i_NHK) @ fixed(core_CRR).sum(0)
  right_NHKR = product_keys.take(fixed(second_NHQR), j_NHK)
  grid_NHKK = jnp.einsum("NHiR,NHjR->NHij", left_NHKR, right_NHKR)
  pick_NHK = product_keys.best(grid_NHKK.reshape(*i_NHK.shape[:2], k * k), k)
  i_NHK, j_NHK = product_keys.take(i_NHK, pick_NHK // k), product_keys.take(j_NHK, pick_NHK % k)
  left_NHKR = product_keys.take(first_NHQR, i_NHK)
  right_NHKR = product_keys.take(second_NHQR, j_NHK)
  left_NHKCR = jnp.einsum("NHKR,CRS->NHKCS", left_NHKR, core_CRR)
  return jnp.einsum("NHKCR,NHKR->NHKC", left_NHKCR, right_NHKR), i_NHK * n + j_NHK


def leading(core_CRR: jax.Array, u_R: jax.Array, v_R: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The first singular vectors of the summed cores, pointing to where u and v pointed.

  >>> u, v = leading(-jnp.ones((1, 2, 2)), jnp.ones(2), -jnp.ones(2))
  >>> u.round(3).tolist(), v.round(3).tolist()
  ([0.7070000171661377, 0.7070000171661377], [-0.7070000171661377, -0.7070000171661377])
  """
  left_RR, _, right_RR = jnp.linalg.svd(core_CRR.astype(jnp.float32).sum(0))
  new_u_R, new_v_R = left_RR[:, 0], right_RR[0]
  sign = jnp.where(new_u_R @ u_R + new_v_R @ v_R < 0, -1.0, 1.0)
  return sign * new_u_R, sign * new_v_R


def refresh(params: dict, state: dict, cfg: Config) -> dict:
  """The state of a layer after a step: u and v follow the core."""
  old = state["router"]
  u_R, v_R = leading(params["router"]["core_CRR"], old["u_R"], old["v_R"])
  return {**state, "router": {**old, "u_R": u_R, "v_R": v_R}}


class Lookup(nn.Module):
  """Normalised queries and keys, the core, and the slots they choose; all of it in float32."""

  cfg: Config

  @nn.compact
  def __call__(self, x_ND):
    """-> (score_NHKC, slot_NHK)."""
    cfg = self.cfg
    first_NHQR, second_NHQR = (self._scores(half, x_ND) for half in "12")
    shape, ones_R = (cfg.cores, cfg.rank, cfg.rank), jnp.ones(cfg.rank)
    core_CRR = self.param("core_CRR", jax.nn.initializers.uniform(1.0), shape)
    first = lambda: leading(core_CRR, ones_R, ones_R)
    u_R = self.variable("router_state", "u_R", lambda: first()[0]).value
    v_R = self.variable("router_state", "v_R", lambda: first()[1]).value
    return lookup(first_NHQR, second_NHQR, core_CRR, u_R, v_R, cfg.k)

  def _scores(self, half, x_ND):
    cfg, A = self.cfg, self.cfg.key_width // 2
    keys = jax.nn.initializers.normal(cfg.key_width**-0.5)
    start = jax.nn.initializers.constant(A**-0.4)
    query_NHA = product_keys.queries(self, f"query{half}_DHA", x_ND, cfg.heads, A)
    key_HQRA = self.param(f"key{half}_HQRA", keys, (cfg.heads, cfg.keys, cfg.rank, A))
    scale = lambda of: self.param(f"scale_{of}{half}_A", start, (A,))
    query_NHA = basic.rms_norm(query_NHA, scale("query"), 1e-6)
    return jnp.einsum("NHA,HQRA->NHQR", query_NHA, basic.rms_norm(key_HQRA, scale("key"), 1e-6))


class Layer(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_ND, ctx, router_x_ND=None):
    cfg, (N, D), slots = self.cfg, x_ND.shape, self.cfg.keys**2
    choose = Lookup(cfg, name="router")
    score_NHKC, slot_NHK = choose(x_ND if router_x_ND is None else router_x_ND)
    leaves, row_NHK, carry = tables.rows_of(self, cfg.table, slot_NHK, slots, ctx)
    weight_NHKC = score_NHKC.astype(x_ND.dtype)
    if cfg.table.pre:
      in_DR = params.weight(self, "in_DR", over="D", D=D, R=cfg.table.pre)
      pre_NHK = peer.hidden(x_ND @ in_DR, row_NHK, leaves["pre_PR"])
      weight_NHKC *= peer.ACTIVATIONS[cfg.activation](pre_NHK)[..., None]
    # each core weighs its own part of the value
    y_NCF = jnp.einsum(
      "NMC,NMCF->NCF",
      weight_NHKC.reshape(N, -1, cfg.cores),
      leaves["value_PF"][row_NHK.reshape(N, -1)].reshape(N, reads(cfg), cfg.cores, -1),
    )
    out_FD = params.weight(self, "out_FD", over="F", D=D, F=cfg.table.width)
    y_ND = y_NCF.reshape(N, -1) @ out_FD
    return y_ND.astype(x_ND.dtype), product_keys.usage(slot_NHK, slots, ctx.valid_N), carry
