"""The importance loss: the squared coefficient of variation of the gates that each id collects.

Paper:  Shazeer et al. 2017, arXiv:1701.06538 (chosen); Riquelme et al. 2021 (V-MoE),
        arXiv:2106.05974 (all, without noise).
Sums:   importance_U (gates by id). Noisy routers leave extras: of their logits, softmax chosen
        reads the noisy ones and softmax all the clean ones.
Value:  0 per layer when all ids collect the same; U / K - 1 at collapse on K ids.
Study:  configs/studies/conventions.py
Differs from the paper: gates are those of a softmax, whatever the router makes of its own.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.core import routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 0.01
  softmax: Literal["chosen", "all"] = "all"  # gates: over the chosen ids, or over all


def observe(plan, logit_NU, inputs, cfg):
  """The sum of one layer."""
  if cfg.softmax == "all":
    gate_NU = jax.nn.softmax(inputs.extras.get("clean_NU", logit_NU))
  else:
    gate_NU = _of_chosen(plan, logit_NU)
  if inputs.valid_N is not None:
    gate_NU = jnp.where(inputs.valid_N[:, None], gate_NU, 0)
  return {"importance_U": gate_NU.sum(0)}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> float(loss({"importance_U": jnp.array([[3.0, 1.0]])}, {}, Config()))
  0.25
  """
  return jnp.sum(routing.squared_variation(sums_L["importance_U"]))


def _of_chosen(plan, logit_NU):
  """A softmax over the chosen ids, by id."""
  if not isinstance(plan, TokenPlan):
    raise Wrong(
      "importance: softmax 'chosen' reads the choices of tokens, and this router lets experts"
      " choose; use softmax 'all'."
    )
  gate_NK = jax.nn.softmax(routing.take(logit_NU, plan.expert_NK), where=plan.expert_NK >= 0)
  chosen = TokenPlan(plan.expert_NK, gate_NK, logit_NU.shape[1])
  return chosen.weights_NE()
