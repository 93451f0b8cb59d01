"""The entropy of the router's distribution: a positive weight makes it sure, a negative one unsure.

Paper:  Huang et al. 2024 (Harder Tasks Need More Experts), arXiv:2403.07652, weight 1e-4.
Sums:   entropy (of the softmax over all ids, in nats); reads tokens of the layer.
Value:  the mean over tokens per layer: log(U) where all logits are equal, log(K) where K of them
        are equal and far above the others. It asks for no load.
Study:  configs/studies/top_p.py
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import sums


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 1e-4


def observe(plan, logit_NU, inputs, cfg):
  """The sum of one layer."""
  log_NU = jax.nn.log_softmax(logit_NU)
  entropy_N = -jnp.sum(jnp.exp(log_NU) * log_NU, axis=1)
  valid_N = jnp.ones(len(entropy_N), bool) if inputs.valid_N is None else inputs.valid_N
  return {"entropy": jnp.sum(entropy_N, where=valid_N)}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> float(loss({"entropy": jnp.array([8.0, 4.0]), "tokens": jnp.array([4.0, 4.0])}, {}, Config()))
  3.0
  """
  return jnp.sum(sums.per(sums_L["entropy"], sums_L["tokens"]))
