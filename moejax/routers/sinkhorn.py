"""Sinkhorn routing (S-BASE): in training, top-k of scores made even over tokens and experts.

Paper:  Clark et al. 2022, arXiv:2202.01169; gates and iterations as in Megatron-LM.
Plan:   TokenPlan.   State: none.   Tokens: coupled in training, independent in evaluation.
Causal: no in training (scores are made even over a group), yes in evaluation (plain top-k).
Study:  configs/studies/baselines.py
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 1
  tolerance: float = 1e-4  # how far the factors of the columns, of mean 1, still move on average
  iterations: int = 50  # at most

  def __post_init__(self):
    if self.tolerance <= 0 or self.iterations < 1:
      raise Wrong(
        f"sinkhorn: tolerance {self.tolerance} must be above 0 and iterations {self.iterations} at"
        " least 1."
      )


def doubly_stochastic(logit_nU, valid_n, tolerance: float, iterations: int):
  """exp(logits) times a factor per row and per column: rows sum to 1, columns to valid / U.

  >>> doubly_stochastic(jnp.array([[1., 0.], [1., 0.]]), jnp.ones(2, bool), 1e-6, 99).tolist()
  [[0.5, 0.5], [0.5, 0.5]]
  """
  U, tiny = logit_nU.shape[1], 1e-30  # tiny: a group may be all padding
  below_nU = logit_nU - logit_nU.max(1, keepdims=True)
  power_nU = jnp.exp(jnp.maximum(below_nU, -50))  # no column underflows
  row = lambda factor_U: valid_n / jnp.maximum(power_nU @ factor_U, tiny)

  def once(carry):
    i, factor_U, _ = carry
    new_U = 1 / jnp.maximum(row(factor_U) @ power_nU, tiny)
    new_U = new_U / new_U.mean()  # the rows take the scale away
    return i + 1, new_U, jnp.abs(new_U - factor_U).mean()

  going = lambda carry: (carry[0] < iterations) & (carry[2] > tolerance)
  _, factor_U, _ = jax.lax.while_loop(going, once, (0, jnp.ones(U), jnp.inf))
  return power_nU * factor_U[None] * row(factor_U)[:, None]


def causal(cfg) -> bool:
  """Not in training: scores are made even over a whole group."""
  return False


def select(logit_NU, inputs, cfg):
  """The k highest of the even scores; without a key, outside training, of the logits."""
  N, U = logit_NU.shape
  score_NU = jax.lax.stop_gradient(logit_NU)
  if inputs.key is not None:
    valid_N = jnp.ones(N, bool) if inputs.valid_N is None else inputs.valid_N
    score_GnU = score_NU.reshape(inputs.groups, -1, U)
    valid_Gn = valid_N.reshape(score_GnU.shape[:2]).astype(jnp.float32)
    one = lambda logit_nU, valid_n: doubly_stochastic(
      logit_nU, valid_n, cfg.tolerance, cfg.iterations
    )
    score_NU = jax.vmap(one)(score_GnU, valid_Gn).reshape(N, U)
  return routing.top_k(score_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """With one choice the sigmoid of its logit, with several their part of the softmax over all."""
  score_NU = jax.nn.sigmoid(logit_NU) if cfg.k == 1 else jax.nn.softmax(logit_NU)
  return routing.take(score_NU, expert_NK)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    return params.linear_logits(self, inputs), inputs
