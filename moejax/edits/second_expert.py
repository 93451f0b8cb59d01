"""Random dispatch: a choice after the first is kept with the probability 2 w, w its part of gates.

Paper:  Lepikhin et al. 2020 (GShard), arXiv:2006.16668.
Plan:   TokenPlan -> TokenPlan with fewer choices; gates stay as they are.   State: none.
Sums:   choices (used ones after the first), dropped. Without a key, as in evaluation, all are kept.
Causal: yes.
Study:  configs/studies/conventions.py
Differs from the paper: there are two choices in it; here each one after the first has its own draw.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import rng, routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  factor: float = 2.0  # a choice with 1 / factor of the gates, or more, is always kept

  def __post_init__(self):
    if self.factor <= 0:
      raise Wrong(
        f"second_expert: factor {self.factor} keeps no second choice; use one above 0, 2.0 in"
        " GShard, or a router with k=1."
      )


def edit(plan, logit_NU, inputs, cfg):
  """The plan without the choices that lost, and how many could lose and how many did."""
  if not isinstance(plan, TokenPlan):
    raise Wrong("second_expert: here experts choose, and no token has a second; take the edit out.")
  used_NK = plan.expert_NK >= 0
  lower_NK = used_NK & (jnp.arange(used_NK.shape[1])[None] > 0)
  dropped_NK = jnp.zeros_like(lower_NK)
  if inputs.key is not None:
    part_NK = routing.renormalise(jnp.where(used_NK, plan.gate_NK, 0))
    draw_NK = jax.random.uniform(rng.stream(inputs.key, "second_expert"), part_NK.shape)
    dropped_NK = lower_NK & (draw_NK >= cfg.factor * part_NK)
  sums = {"choices": lower_NK.sum(), "dropped": dropped_NK.sum()}
  return plan.replace(expert_NK=jnp.where(dropped_NK, -1, plan.expert_NK)), sums
