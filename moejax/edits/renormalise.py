"""Renormalise: what drops took away is made up by the choices that are left.

Paper:  Lu et al. 2024 (NAEE), arXiv:2402.14800, after it skips an expert.
Plan:   TokenPlan -> TokenPlan with other gates.   State: none.
Causal: yes.
Study:  configs/studies/expert_skipping.py
Differs from the paper: `total` says what the gates sum to; the paper's routers always sum to one.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from moejax.core import routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  total: Literal["before", "one"] = "before"  # the sum before the edits that drop, or one


def edit(plan, logit_NU, inputs, cfg):
  """Gates in the old proportions, virtual ids included; a token with nothing left keeps zeros.

  >>> plan = TokenPlan(jnp.array([[3, -1, 0]]), jnp.array([[.5, .25, .25]]), num_experts=4)
  >>> edit(plan, None, None, Config())[0].gate_NK.round(3).tolist()
  [[0.667..., 0.0, 0.333...]]
  """
  if not isinstance(plan, TokenPlan):
    raise Wrong("renormalise: here experts choose and drop nothing; take the edit out.")
  gate_NK = routing.renormalise(jnp.where(plan.expert_NK < 0, 0, plan.gate_NK))
  if cfg.total == "before":
    gate_NK = gate_NK * plan.gate_NK.sum(1, keepdims=True)
  return plan.replace(gate_NK=gate_NK), {}
