"""As many experts as it takes to gather a share of the probability, for each token its own number.

Paper:  Huang et al. 2024, arXiv:2403.07652; renormalised, with zero experts in the pool
        (`model.moe.virtual`) and a shared expert under the same softmax (`shared.gate` "chosen"):
        Uni-MoE-2.0 2025, arXiv:2511.12609.
Plan:   TokenPlan with a variable number of choices.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/top_p.py
Differs from the paper: a token has k places and makes no more choices, as the shapes are fixed; k
        is the number that FLOPs are counted for. Uni-MoE's sampling of gates near the highest is
        left out: its gates are the probabilities over their sum.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 4  # the most choices of a token
  threshold: float = 0.4  # the probability to gather; the knob `threshold` replaces it
  renormalise: bool = False

  def __post_init__(self):
    if self.threshold < 0:
      raise Wrong(f"top_p: threshold is {self.threshold}; it is a probability of at least 0.")


def select(logit_NU, inputs, cfg):
  """The most probable ids, up to and with the one that takes their sum above the threshold.

  >>> from moejax.core.plan import RouterInputs
  >>> logit_NU = jnp.log(jnp.array([[.5, .125, .25, .125]]))
  >>> [select(logit_NU, RouterInputs(), Config(threshold=t)).tolist() for t in (0.0, 0.5, 0.8)]
  [[[0, -1, -1, -1]], [[0, 2, -1, -1]], [[0, 2, 1, -1]]]
  """
  expert_NK = routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))
  prob_NK = routing.take(jax.nn.softmax(logit_NU), expert_NK)
  others_NK = jnp.pad(prob_NK[:, :-1], ((0, 0), (1, 0)))
  before_NK = jnp.cumsum(others_NK, axis=1)  # what the more probable ids have gathered
  threshold = inputs.knobs.get("threshold", cfg.threshold)
  used_NK = (before_NK <= threshold) | (threshold >= 1)  # a sum may round to more than 1
  return jnp.where(used_NK, expert_NK, -1)


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities."""
  return routing.gates(jax.nn.softmax(logit_NU), expert_NK, cfg.renormalise)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    return params.linear_logits(self, inputs), inputs
