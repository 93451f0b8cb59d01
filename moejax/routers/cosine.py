"""Cosine routing: the angle between a projected token and an embedding of each expert, sharpened.

Paper:  Chi et al. 2022 (X-MoE), arXiv:2204.09179; Hwang et al. 2022 (Tutel, SwinV2-MoE),
        arXiv:2206.03382.
Plan:   TokenPlan.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/conventions.py
Differs from the paper: embeddings start like every other weight instead of with a deviation of
        0.01; their length does not count.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong

EPSILON = 1e-12  # added to squared lengths: a token of zeros has no angle


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  rank: int = 32  # of the space in which angles are taken; 256 in SwinV2-MoE
  temperature: float = 0.5  # at the start; it is learnt
  floor: float = 0.01  # the lowest temperature, so that no logit exceeds 1 / floor
  renormalise: bool = True  # gates that sum to one

  def __post_init__(self):
    if self.rank < 1 or not 0 < self.floor <= self.temperature:
      raise Wrong(
        f"cosine: rank {self.rank}, floor {self.floor}, temperature {self.temperature} do not go"
        " together; use a rank of at least 1 and 0 < floor <= temperature, as 0.01 and 0.5."
      )


def unit(a: jax.Array, axis: int) -> jax.Array:
  """Vectors of length one.

  >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]), axis=1).round(3).tolist()
  [[0.6..., 0.8...], [0.0, 0.0]]
  """
  return a * jax.lax.rsqrt(jnp.sum(a**2, axis=axis, keepdims=True) + EPSILON)


def select(logit_NU, inputs, cfg):
  """The k ids at the smallest angles."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities in a softmax over all ids."""
  return routing.gates(jax.nn.softmax(logit_NU), expert_NK, cfg.renormalise)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    cfg, x_ND = self.cfg, inputs.x_ND.astype(jnp.float32)
    in_DR = params.weight(self, "in_DR", over="D", D=x_ND.shape[1], R=cfg.rank)
    ids = [params.weight(self, "expert_RE", over="R", R=cfg.rank, E=inputs.num_experts)]
    if inputs.virtual:
      ids.append(params.weight(self, "expert_RZ", over="R", R=cfg.rank, Z=len(inputs.virtual)))
    start = jax.nn.initializers.constant(-math.log(cfg.temperature))
    log_scale_H = self.param("log_scale_H", start, (1,))  # of one head
    scale_H = jnp.exp(jnp.minimum(log_scale_H.astype(jnp.float32), -math.log(cfg.floor)))
    cosine_NU = routing.logits(
      unit(x_ND @ in_DR.astype(jnp.float32), 1), *(unit(a, 0) for a in ids)
    )
    return scale_H[:, None] * cosine_NU, inputs
