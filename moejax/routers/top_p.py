"""As many experts as it takes to gather a share of the probability, for each token its own number.

Paper:  Huang et al. 2024, arXiv:2403.07652; renormalised, with zero experts in the pool
        (`model.moe.virtual`) and a shared expert under the same softmax (`shared.gate` "chosen"):
        Uni-MoE-2.0 2025, arXiv:2511.12609.
Plan:   TokenPlan with a variable number of choices.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/top_p.py
Differs from the paper: a token has k places and makes no more choices, as the shapes are fixed; k
        is the number that FLOPs are counted for. Uni-MoE's gates are its paper's, the probabilities
        over their sum, or with `near` its code's.
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
  # gates by rivals: each choice's probability among itself and what is left within this part of
  # its logit, over their sum; 0: all alike. Uni-MoE's code has 0.02
  near: float | None = None

  def __post_init__(self):
    if self.threshold < 0:
      raise Wrong(f"top_p: threshold is {self.threshold}; it is a probability of at least 0.")
    if self.near is not None and self.near < 0:
      raise Wrong(f"top_p: near is {self.near}; it is a distance of at least 0, or None.")


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
  """Their probabilities, or what their rivals leave them."""
  if cfg.near is not None:
    return routing.renormalise(among_rivals(logit_NU, expert_NK, cfg.near), eps=1e-6)
  return routing.gates(jax.nn.softmax(logit_NU), expert_NK, cfg.renormalise)


def among_rivals(logit_NU, expert_NK, near: float):
  """Each choice's probability among itself and those not taken before it and not much lower.

  >>> logit_NU = jnp.log(jnp.array([[8.0, 4.0, 2.0]]))
  >>> among_rivals(logit_NU, jnp.array([[0, 1]]), 0.4).round(3).tolist()  # 4 is near 8, 2 is not
  [[0.667..., 1.0]]
  """
  id_1U, taken_NU, gates = jnp.arange(logit_NU.shape[1])[None], jnp.zeros(logit_NU.shape, bool), []
  for id_N1 in jnp.split(expert_NK, expert_NK.shape[1], axis=1):
    own_NU, own_N1 = id_1U == id_N1, routing.take(logit_NU, id_N1)
    size_NU = jnp.maximum(jnp.abs(logit_NU), own_N1)
    far_NU = own_N1 - logit_NU > near * size_NU
    out_NU = (taken_NU | far_NU) & ~own_NU & (id_N1 >= 0)
    gates.append(routing.take(jax.nn.softmax(jnp.where(out_NU, -jnp.inf, logit_NU)), id_N1))
    taken_NU |= own_NU
  return jnp.concatenate(gates, axis=1)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    return params.linear_logits(self, inputs), inputs
