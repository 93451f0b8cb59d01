"""Noisy top-k: in training, Gaussian noise on the logits decides between experts that are close.

Paper:  Shazeer et al. 2017, arXiv:1701.06538 (learned; softmax over the chosen); Riquelme et al.
        2021 (V-MoE), arXiv:2106.05974 (fixed, of deviation 1 / ids; softmax over all).
Plan:   TokenPlan.   State: none; extras clean_NU and noise_NU for the rules importance and load.
        Tokens: independent.
Causal: yes.
Study:  configs/studies/conventions.py
Differs from the paper: the clean logits do not start at zero, where all experts would be equal
        without noise; those of the learned noise do.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, rng, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  noise: Literal["learned", "fixed"] = "learned"  # its deviation: softplus(x W), or size / ids
  size: float = 1.0  # of the fixed noise
  softmax: Literal["chosen", "all"] = "chosen"  # gates: over the chosen ids, or their part of all

  def __post_init__(self):
    if self.size <= 0:
      raise Wrong(f"noisy_topk: noise of size {self.size} is none; use a size above 0, or 'topk'.")


def select(logit_NU, inputs, cfg):
  """The k highest, noise included."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Probabilities of the noisy logits.

  >>> logit_NU, expert_NK = jnp.log(jnp.array([[.5, .25, .25]])), jnp.array([[0, 1]])
  >>> weigh(logit_NU, expert_NK, None, Config(softmax="all")).round(3).tolist()
  [[0.5, 0.25]]
  """
  if cfg.softmax == "chosen":
    return jax.nn.softmax(routing.take(logit_NU, expert_NK), where=expert_NK >= 0)
  return routing.take(jax.nn.softmax(logit_NU), expert_NK)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    clean_NU = logit_NU = params.linear_logits(self, inputs)
    noise_NU = self._deviation(inputs, clean_NU.shape)
    if inputs.key is not None:
      draw_NU = jax.random.normal(rng.stream(inputs.key, "router"), clean_NU.shape)
      logit_NU = clean_NU + noise_NU * draw_NU
    extras = {**inputs.extras, "clean_NU": clean_NU, "noise_NU": noise_NU}
    return logit_NU, inputs.replace(extras=extras)

  def _deviation(self, inputs, shape):
    """The standard deviation of each logit's noise."""
    if self.cfg.noise == "fixed":
      return jnp.full(shape, self.cfg.size / shape[1])
    D, E, Z = inputs.x_ND.shape[1], inputs.num_experts, len(inputs.virtual)
    own = lambda name, size: self.param(name, jax.nn.initializers.zeros, (D, size))
    noises = [own("noise_DE", E)] + ([own("noise_DZ", Z)] if Z else [])
    return jax.nn.softplus(routing.logits(inputs.x_ND, *noises))
