"""Capacity dispatch: every expert's C slots are gathered, run as equal groups, added back.

Plan:   with slots: an ExpertPlan, or a TokenPlan after the edit `capacity`.
Cost:   E * C rows, empty slots included.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core.rows import Rows


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Empty slots are rows of zeros."""
  slots = plan.slots()
  E, C = slots.token_EC.shape
  rows = Rows(x_ND, slots.token_EC.ravel(), slots.gate_EC.ravel())
  return rows.combine(experts.fn(experts.params, rows, jnp.full((E,), C))), {}
