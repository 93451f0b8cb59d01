"""Dense dispatch, the oracle: every expert on every token, then the weights.

Plan:   any in which tokens or experts choose.
Cost:   N * E rows, whatever the plan.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core.rows import Rows


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """y[n] = sum over e of weights[n, e] * expert_e(x[n])."""
  N, E = len(x_ND), plan.num_experts
  weights_NE = plan.weights_NE()
  rows = Rows(x_ND, jnp.tile(jnp.arange(N), E), weights_NE.T.ravel())
  return rows.combine(experts.fn(experts.params, rows, jnp.full((E,), N))), {}
