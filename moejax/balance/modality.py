"""A balance loss for every modality: its own tokens over the ids that it may choose.

Paper:  Wang et al. 2025 (MoIIE), arXiv:2508.09779.
Scope:  the micro-batch on all devices.
Sums:   prob_YU and count_YU by modality, token_Y, open_YU_max (1 where a modality may choose).
Value:  1 per layer and modality when its choices and probabilities are even, 0 for one without
        tokens; U / K for one whose tokens all choose the same K of U ids.
Study:  configs/studies/moiie.py
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import sums
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 1e-3
  modalities: int = 2  # Y

  def __post_init__(self):
    if self.modalities < 1:
      raise Wrong(f"balance.modality: modalities is {self.modalities}; it must be at least 1.")


def observe(plan, logit_NU, inputs, cfg):
  """The sums of one layer."""
  if inputs.modality_N is None or not isinstance(plan, TokenPlan):
    raise Wrong(
      "balance.modality: it needs the modality of every token and a router that lets tokens choose;"
      " list labels in data.modalities, or take the entry out."
    )
  (N, U), Y = logit_NU.shape, cfg.modalities
  valid_N = jnp.ones(N, bool) if inputs.valid_N is None else inputs.valid_N
  is_NY = (inputs.modality_N[:, None] == jnp.arange(Y)[None]) & valid_N[:, None]
  is_NY = is_NY.astype(jnp.float32)
  at_NK = jnp.where(plan.expert_NK < 0, Y * U, inputs.modality_N[:, None] * U + plan.expert_NK)
  count_YU = jnp.bincount(at_NK.ravel(), length=Y * U + 1)[:-1].reshape(Y, U)
  may_NU = (logit_NU > -jnp.inf).astype(jnp.float32)
  return {
    "prob_YU": is_NY.T @ jax.nn.softmax(logit_NU),
    "count_YU": count_YU.astype(jnp.float32),
    "token_Y": is_NY.sum(0),
    "open_YU_max": jnp.minimum(is_NY.T @ may_NU, 1),
  }


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> even = {"prob_YU": jnp.ones((1, 2, 3)), "count_YU": jnp.ones((1, 2, 3))}
  >>> even |= {"token_Y": jnp.full((1, 2), 3.0), "open_YU_max": jnp.ones((1, 2, 3))}
  >>> round(float(loss(even, {}, Config())), 5)
  2.0
  """
  count_LYU = jax.lax.stop_gradient(sums_L["count_YU"])
  share_LYU = sums.per(count_LYU, count_LYU.sum(-1, keepdims=True))
  mean_LYU = sums.per(sums_L["prob_YU"], sums_L["token_Y"][..., None])
  ids_LY = jax.lax.stop_gradient(sums_L["open_YU_max"]).sum(-1)
  return jnp.sum(ids_LY * jnp.sum(share_LYU * mean_LYU, axis=-1))
