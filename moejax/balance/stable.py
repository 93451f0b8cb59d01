"""StableMoE's balance loss: scores of the chosen, weighted by how far their load is off the mean.

Paper:  Dai et al. 2022 (StableMoE), arXiv:2204.08396.
Sums:   score_U (sigmoids of the chosen logits); reads count_U and tokens of the layer.
Value:  the mean over tokens of their choices' (load / mean load - 1) * sigmoid(logit), per layer: 0
        when loads are even, U - K at collapse on K sure ids.
Study:  configs/studies/baselines.py
Differs from the paper: a mean over tokens instead of a sum. Loads carry no gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import routing, sums
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 0.3


def observe(plan, logit_NU, inputs, cfg):
  """The sums of one layer."""
  if not isinstance(plan, TokenPlan):
    raise Wrong(
      "stable: the loss weighs the choices of tokens, and with this router tokens choose nothing;"
      " take the balance entry out."
    )
  score_NK = routing.take(jax.nn.sigmoid(logit_NU), plan.expert_NK)
  at_NK = jnp.where(plan.expert_NK < 0, logit_NU.shape[1], plan.expert_NK)
  score_U = jnp.zeros(logit_NU.shape[1]).at[at_NK].add(score_NK, mode="drop")
  return {"score_U": score_U}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> sums = {"count_U": jnp.array([[3., 1.]]), "score_U": jnp.array([[2., 1.]])}
  >>> float(loss({**sums, "tokens": jnp.array([4.])}, {}, Config()))
  0.125
  """
  count_LU = jax.lax.stop_gradient(sums_L["count_U"])
  mean_L1 = jnp.maximum(count_LU.mean(1, keepdims=True), 1e-9)  # no choices: 0 / 1e-9
  over_L = jnp.sum((count_LU / mean_L1 - 1) * sums_L["score_U"], axis=1)
  return jnp.sum(sums.per(over_L, sums_L["tokens"]))
