"""A balance loss for one expert of many: sure tokens and even probabilities, both at once.

Paper:  Sigma-MoE-Tiny 2025, arXiv:2512.16248. The loss of Switch is at its lowest also where all
        probabilities are even and the choices are not; this one is at its highest there.
Sums:   prob_U, top (sums of the tempered probabilities and of the largest of each token); reads
        tokens of the layer.
Value:  1 per layer where every token is sure and every id has as many; U where no token is sure,
        and U where all tokens are sure of the same id.
Study:  configs/studies/extreme_sparsity.py
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 0.01
  temperature: float = 1.0  # of the probabilities that the loss sees

  def __post_init__(self):
    if self.temperature <= 0:
      raise Wrong(f"top1: temperature is {self.temperature}; use one above 0.")


def observe(plan, logit_NU, inputs, cfg):
  """The sums of one layer; nothing of it is held constant."""
  prob_NU = jax.nn.softmax(logit_NU / cfg.temperature)
  if inputs.valid_N is not None:
    prob_NU = jnp.where(inputs.valid_N[:, None], prob_NU, 0)
  return {"prob_U": prob_NU.sum(0), "top": prob_NU.max(1).sum()}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> one = {"prob_U": jnp.ones((1, 4)), "top": jnp.ones(1), "tokens": jnp.full(1, 4.0)}
  >>> float(loss(one, {}, Config())), float(loss({**one, "top": jnp.full(1, 4.0)}, {}, Config()))
  (4.0, 1.0)
  """
  U, token_L = sums_L["prob_U"].shape[-1], jnp.maximum(sums_L["tokens"], 1)
  mean_LU = sums_L["prob_U"] / token_L[:, None]
  top_L = jnp.maximum(sums_L["top"] / token_L, 1 / U)  # never below, but where there are no tokens
  return jnp.sum(U * jnp.sum(mean_LU**2, axis=1) / top_L)
