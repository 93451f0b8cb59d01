"""Dropless dispatch: rows sorted by expert, so that the cost follows the choices that are used.

Paper:  Gale et al. 2022 (MegaBlocks), arXiv:2211.15841.
Plan:   any in which tokens or experts choose.
Cost:   one row for each choice that is used.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core.rows import Rows


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Rows without an expert sort last, belong to no group and cost nothing."""
  expert_M, token_M, gate_M = plan.rows()
  order_M = jnp.argsort(expert_M, stable=True)
  # bincount drops ids beyond its length, but counts negative ones into bin 0: rows() has none
  size_E = jnp.bincount(expert_M, length=plan.num_experts)
  rows = Rows(x_ND, token_M[order_M], gate_M[order_M])
  return rows.combine(experts.fn(experts.params, rows, size_E)), {}
