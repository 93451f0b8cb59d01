"""A gate that starts dense and becomes top-1: Gumbel-softmax over all ids, cooled and cut off.

Paper:  Nie et al. 2021 (EvoMoE, the DTS gate), arXiv:2112.14397; Jang et al. 2017,
        arXiv:1611.01144 (Gumbel-softmax).
Plan:   TokenPlan with a variable number of choices.   State: none; extras gate_NU for
        balance/dts.py.   Tokens: independent.
Causal: yes.
Study:  configs/studies/evomoe.py
Knobs:  temperature; hard, from 0.5 on exactly one choice (the switch to top-1).
Differs from the paper: a token has k places, which is every id if k is their number, as there; k
        is also the number that FLOPs are counted for.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, rng, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 4  # the most choices of a token; the number of experts for a gate that starts dense
  temperature: float = 1.0  # the knob `temperature` replaces it
  threshold: float = 1e-3  # an id of no more probability is not chosen
  noisy_gates: bool = True  # gates are the noisy, cooled probabilities; False: the router's own

  def __post_init__(self):
    if self.temperature <= 0 or not 0 <= self.threshold < 1:
      raise Wrong(
        f"dense_to_sparse: temperature {self.temperature} must be above 0 and threshold"
        f" {self.threshold} within [0, 1); the paper cools from 1 to 0.5 with threshold 0.001."
      )


def cooled(logit_NU, inputs, cfg):
  """Probabilities at the temperature of the step; the logits have their noise already.

  >>> from moejax.core.plan import RouterInputs
  >>> logit_NU = jnp.array([[0.0, 1.0, 2.0, 3.0]])
  >>> cooled(logit_NU, RouterInputs(), Config(temperature=1e6)).round(3).tolist()
  [[0.25, 0.25, 0.25, 0.25]]
  """
  return jax.nn.softmax(logit_NU / inputs.knobs.get("temperature", cfg.temperature))


def select(logit_NU, inputs, cfg):
  """The ids above the threshold, the most probable first; behind the switch, that one alone."""
  expert_NK = routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))
  hard = jnp.asarray(inputs.knobs.get("hard", 0.0)) >= 0.5
  is_first_1K = jnp.arange(cfg.k)[None] == 0
  above_NK = routing.take(cooled(logit_NU, inputs, cfg), expert_NK) > cfg.threshold
  return jnp.where(jnp.where(hard, is_first_1K, above_NK), expert_NK, -1)


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities, not renormalised."""
  clean_NU = inputs.extras.get("clean_NU", logit_NU)
  return routing.take(_gates(logit_NU, clean_NU, inputs, cfg), expert_NK)


def _gates(logit_NU, clean_NU, inputs, cfg):
  """The gate that every id would have."""
  return cooled(logit_NU, inputs, cfg) if cfg.noisy_gates else jax.nn.softmax(clean_NU)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    clean_NU = logit_NU = params.linear_logits(self, inputs)
    if inputs.key is not None:
      logit_NU = clean_NU + jax.random.gumbel(rng.stream(inputs.key, "router"), clean_NU.shape)
    gate_NU = _gates(logit_NU, clean_NU, inputs, self.cfg)
    extras = {**inputs.extras, "clean_NU": clean_NU, "gate_NU": gate_NU}
    return logit_NU, inputs.replace(extras=extras)
