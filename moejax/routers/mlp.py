"""A router with one hidden layer, and no memory: what routers with memory are compared with.

Paper:  Qiu et al. 2024 (RMoE), arXiv:2408.06793, its router without the recurrence.
Plan:   TokenPlan.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/rmoe.py
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong

ACTIVATIONS = {"tanh": jnp.tanh, "gelu": jax.nn.gelu}


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  rank: int = 16
  activation: Literal["tanh", "gelu"] = "tanh"

  def __post_init__(self):
    if self.rank < 1:
      raise Wrong(f"mlp: a hidden layer of rank {self.rank} lets nothing through; use at least 1.")


def flops(cfg, width: int, ids: int) -> float:
  """Forward FLOPs per token."""
  return 2.0 * cfg.rank * (width + ids)


def select(logit_NU, inputs, cfg):
  """The k highest."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities, summing to one."""
  return routing.renormalise(routing.take(jax.nn.softmax(logit_NU), expert_NK))


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    x_ND = inputs.x_ND.astype(jnp.float32)
    in_DR = params.weight(self, "in_DR", over="D", D=x_ND.shape[1], R=self.cfg.rank)
    hidden_NR = ACTIVATIONS[self.cfg.activation](x_ND @ in_DR)
    return params.low_rank_logits(self, hidden_NR, inputs), inputs
