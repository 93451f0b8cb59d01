"""Softmax top-k whose logits know what the token is conditioned on: a diffusion step, a class.

Paper:  Fei et al. 2024 (DiT-MoE), arXiv:2407.11633 (modulate: its experts and router read the token
        scaled and shifted by the condition); add is a linear router on the token and the condition
        side by side, as in image models with experts by the timestep.
Plan:   TokenPlan.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/conditioned.py
Differs from the paper: the router alone is modulated, by one linear map of the condition that
        starts at zero, so that at first it is plain top-k.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  width: int = 2  # C, numbers in the condition of a token
  mode: Literal["add", "modulate"] = "add"
  renormalise: bool = True  # gates that sum to one; DiT-MoE does without

  def __post_init__(self):
    if self.width < 1:
      raise Wrong(f"conditioned: width is {self.width}; a condition has at least 1 number.")


def select(logit_NU, inputs, cfg):
  """The k highest."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities."""
  return routing.gates(jax.nn.softmax(logit_NU), expert_NK, cfg.renormalise)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    x_ND = inputs.x_ND.astype(jnp.float32)
    cond_NC, D = self._condition(inputs), x_ND.shape[1]
    from_cond = lambda name, size: (
      cond_NC
      @ self.param(name, jax.nn.initializers.zeros, (self.cfg.width, size)).astype(jnp.float32)
    )
    if self.cfg.mode == "modulate":
      x_ND = x_ND * (1 + from_cond("scale_CD", D)) + from_cond("shift_CD", D)
      return params.linear_logits(self, inputs.replace(x_ND=x_ND)), inputs
    added_NU = from_cond("cond_CE", inputs.num_experts)
    if inputs.virtual:
      added_NU = jnp.concatenate([added_NU, from_cond("cond_CZ", len(inputs.virtual))], axis=1)
    return params.linear_logits(self, inputs.replace(x_ND=x_ND)) + added_NU, inputs

  def _condition(self, inputs):
    """cond_NC in float32."""
    N, C = len(inputs.x_ND), self.cfg.width
    if inputs.cond_NC is None:
      if not self.is_initializing():  # a model is made from tokens alone
        raise Wrong(
          "conditioned: the tokens have no condition; set data.condition='modality' and list labels"
          " in data.modalities, or give the model cond_NC."
        )
      return jnp.zeros((N, C))
    if inputs.cond_NC.shape != (N, C):
      raise Wrong(
        f"conditioned: the condition has {inputs.cond_NC.shape[-1]} numbers per token and"
        f" model.moe.router.width is {C}; set it to {inputs.cond_NC.shape[-1]}."
      )
    return inputs.cond_NC.astype(jnp.float32)
