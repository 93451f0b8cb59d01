"""The router z-loss: small logits, by the squared logarithm of their partition function.

Paper:  Zoph et al. 2022 (ST-MoE), arXiv:2202.08906.
Sums:   z (logsumexp of the logits, squared); reads tokens of the layer.
Value:  the mean over tokens per layer, as in the paper: log(U)^2 where all logits are 0. It asks
        for small logits and not for an even load.
Study:  configs/studies/conventions.py
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import sums


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 1e-3


def observe(plan, logit_NU, inputs, cfg):
  """The sum of one layer."""
  z_N = jax.nn.logsumexp(logit_NU, axis=1) ** 2
  return {"z": z_N.sum() if inputs.valid_N is None else jnp.sum(z_N, where=inputs.valid_N)}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> float(loss({"z": jnp.array([8.0, 4.0]), "tokens": jnp.array([4.0, 4.0])}, {}, Config()))
  3.0
  """
  return jnp.sum(sums.per(sums_L["z"], sums_L["tokens"]))
