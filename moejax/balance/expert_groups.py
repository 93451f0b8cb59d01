"""The device loss: balance between groups of neighbouring experts, and of virtual ids as one more.

Paper:  Dai et al. 2024 (DeepSeekMoE), arXiv:2401.06066; Meituan 2025 (LongCat-Flash),
        arXiv:2509.01322 (virtual ids, experts_per_token).
Scope:  whose choices are to be even: those of the micro-batch on all devices, or of the step so
        far.
Sums:   prob_G and count_G, by group, virtual ids last; reads tokens of the layer.
Value:  1 per layer when the choices or the probabilities of the groups are at their targets.
Study:  configs/studies/conventions.py
Differs from the paper: LongCat-Flash prints an indicator for what is counted; here it is choices,
        so that every factor is 1 at its target. Counts carry no gradient.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.core import sums
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 0.05
  groups: int = 2  # of neighbouring experts, one per device
  experts_per_token: float | None = None  # the target, of k choices; None: k, without virtual ids
  scope: Literal["micro_batch", "step"] = "micro_batch"

  def __post_init__(self):
    if self.groups < 1 or (self.experts_per_token is not None and self.experts_per_token <= 0):
      raise Wrong(
        f"expert_groups: groups {self.groups} and experts_per_token {self.experts_per_token} must"
        " be above 0."
      )


def observe(plan, logit_NU, inputs, cfg):
  """The sums of one layer, by group."""
  E, Z = inputs.num_experts, len(inputs.virtual)
  _check(plan, E, Z, cfg)
  prob_NU = jax.nn.softmax(logit_NU)
  if inputs.valid_N is not None:
    prob_NU = jnp.where(inputs.valid_N[:, None], prob_NU, 0)
  in_groups = lambda a_U: jnp.append(a_U[:E].reshape(cfg.groups, -1).sum(1), a_U[E:].sum())
  prob_G, count_G = in_groups(prob_NU.sum(0)), in_groups(plan.count_U())
  return {"prob_G": prob_G, "count_G": jax.lax.stop_gradient(count_G)}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers; past_L has the sums of earlier micro-batches, {} at first.

  >>> half = {"prob_G": jnp.array([[2., 2., 0.]]), "count_G": jnp.array([[4., 4., 0.]])}
  >>> float(loss({**half, "tokens": jnp.array([4.])}, {}, Config()))
  1.0
  """
  token_L1 = counted_L1 = sums_L["tokens"][:, None]
  mean_LG, count_LG = sums.per(sums_L["prob_G"], token_L1), sums_L["count_G"]
  if cfg.scope == "step" and past_L:
    count_LG, counted_L1 = count_LG + past_L["count_G"], counted_L1 + past_L["tokens"][:, None]
  chosen_LG = sums.per(count_LG, counted_L1)  # per token
  return jnp.sum(chosen_LG / _target(chosen_LG.sum(1, keepdims=True), cfg) * mean_LG)


def _target(choices_L1, cfg):
  """Choices per token that each group should have; virtual ids get what experts leave."""
  most = jnp.inf if cfg.experts_per_token is None else cfg.experts_per_token
  experts_L1 = jnp.minimum(choices_L1, most)
  groups = [experts_L1 / cfg.groups] * cfg.groups
  target_LG = jnp.concatenate([*groups, choices_L1 - experts_L1], axis=1)
  return jnp.where(target_LG > 0, target_LG, 1)


def _check(plan, E, Z, cfg):
  """Refuses what has no groups, or no target."""
  if not isinstance(plan, TokenPlan):
    raise Wrong(
      "expert_groups: here experts choose, and their load is even anyway; take the entry out."
    )
  if E % cfg.groups:
    raise Wrong(
      f"expert_groups: {E} experts cannot form {cfg.groups} equal groups; change groups or"
      " model.moe.num_experts."
    )
  K, target = plan.expert_NK.shape[1], cfg.experts_per_token
  if bool(Z) != (target is not None) or (target is not None and target >= K):
    raise Wrong(
      f"expert_groups: experts_per_token is {target} with k={K} choices and {Z} virtual ids; with"
      " virtual ids it must be given and below k, without them it must be None."
    )
