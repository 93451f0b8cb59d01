"""Softmax scores, chosen with a bias that no gradient moves, weighted by the scores as they are.

Paper:  LongCat-Flash 2025, arXiv:2509.01322, where some ids are identity experts
        (`model.moe.virtual`) and a controller sets how many of a token's choices are experts.
Plan:   TokenPlan.   State: bias_U, written once a step by a controller (balance/pid.py).
        Tokens: independent.
Causal: yes.
Study:  configs/studies/zero_experts.py
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  scale: float = 1.0  # of the gates, which do not sum to one; 6 in LongCat-Flash


def select(logit_NU, inputs, cfg):
  """The k ids with the highest probability + bias."""
  score_NU = jax.nn.softmax(logit_NU) + inputs.state["bias_U"][None]
  return routing.top_k(score_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities, without the bias."""
  return cfg.scale * routing.take(jax.nn.softmax(logit_NU), expert_NK)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    logit_NU = params.linear_logits(self, inputs)
    bias_U = self.variable("router_state", "bias_U", jnp.zeros, logit_NU.shape[1:]).value
    return logit_NU, inputs.replace(state={"bias_U": bias_U})
