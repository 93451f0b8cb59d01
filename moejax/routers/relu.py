"""Every expert with a positive logit, and that logit is its gate: no softmax, no jump in the gates.

Paper:  Wang et al. 2024 (ReMoE), arXiv:2412.14711; the loss that keeps most logits below 0 and lets
        on average k of them through is balance/sparsity.py.
Plan:   TokenPlan with a variable number of choices.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/top_p.py
Differs from the paper: a token has k places, and of more positive logits the highest take them; k
        is the number that FLOPs are counted for. With as many places as ids nothing is left out.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 4  # the most choices of a token


def select(logit_NU, inputs, cfg):
  """The k highest of the positive ones.

  >>> from moejax.core.plan import RouterInputs
  >>> select(jnp.array([[.5, -1., 2.]]), RouterInputs(), Config(k=3)).tolist()
  [[2, 0, -1]]
  """
  expert_NK = routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))
  return jnp.where(routing.take(logit_NU, expert_NK) > 0, expert_NK, -1)


def weigh(logit_NU, expert_NK, inputs, cfg):
  """The logits; 0 for a forced id whose logit is not positive."""
  return jax.nn.relu(routing.take(logit_NU, expert_NK))


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    return params.linear_logits(self, inputs), inputs
