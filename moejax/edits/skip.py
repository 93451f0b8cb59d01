"""Dynamic skipping: a choice whose gate is small beside the token's largest is left out.

Paper:  Lu et al. 2024 (NAEE), arXiv:2402.14800.
Plan:   TokenPlan -> TokenPlan with fewer choices; gates stay as they are, and `renormalise` after
        this edit makes up for the skipped ones, as in the paper.   State: none.
Sums:   choices (used ones but the largest), skipped.
Causal: yes.
Study:  configs/studies/expert_skipping.py
Differs from the paper: there beta is the median ratio of each layer on text for calibration; here
        it is a number, or the knob skip_beta, which may have one value per layer.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  beta: float = 0.5  # gates below beta times the largest one; the knob skip_beta replaces it

  def __post_init__(self):
    if not 0 <= self.beta <= 1:
      raise Wrong(
        f"skip: beta {self.beta} is not within [0, 1]; 0 skips nothing, 1 all but the largest gate."
      )


def edit(plan, logit_NU, inputs, cfg):
  """The plan without small gates, and how many might have been skipped and how many were.

  >>> from moejax.core.plan import RouterInputs
  >>> plan = TokenPlan(jnp.array([[3, 1], [0, 2]]), jnp.array([[.8, .2], [.6, .4]]), num_experts=4)
  >>> edit(plan, None, RouterInputs(), Config(0.5))[0].expert_NK.tolist()
  [[3, -1], [0, 2]]
  """
  if not isinstance(plan, TokenPlan):
    raise Wrong("skip: here experts choose, and tokens have no choice to skip; take the edit out.")
  used_NK = plan.expert_NK >= 0
  largest_N1 = jnp.max(plan.gate_NK, axis=1, keepdims=True, where=used_NK, initial=0)
  small_NK = used_NK & (plan.gate_NK < inputs.knobs.get("skip_beta", cfg.beta) * largest_N1)
  sums = {"choices": used_NK.sum() - used_NK.any(1).sum(), "skipped": small_NK.sum()}
  return plan.replace(expert_NK=jnp.where(small_NK, -1, plan.expert_NK)), sums
