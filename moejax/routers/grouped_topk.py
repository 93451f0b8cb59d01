"""Mixture of grouped experts: each group of neighbouring experts provides as many as every other.

Paper:  Tang et al. 2025 (Pangu Pro MoE), arXiv:2505.21411.
Plan:   TokenPlan, best choices of all groups first, then second ones.   State: none.
        Tokens: independent.
Causal: yes.
Study:  configs/studies/moge_balance.py
Differs from the paper: one group, the default, is plain top-k, and may hold virtual ids. A knob
        k_active that is no multiple of the groups leaves the last of them behind.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 2
  groups: int = 1  # of neighbouring experts, one per device; 8 in Pangu Pro MoE, with k = 8

  def __post_init__(self):
    if self.groups < 1 or self.k % self.groups:
      raise Wrong(
        f"grouped_topk: k={self.k} choices cannot be shared by {self.groups} groups evenly; use a"
        " number of groups that divides k."
      )


def select(logit_NU, inputs, cfg):
  """The k / groups most probable ids of each group.

  >>> from moejax.core.plan import RouterInputs
  >>> select(jnp.array([[9., 8., 1., 2.]]), RouterInputs(), Config(k=2, groups=2)).tolist()
  [[0, 3]]
  """
  (N, U), G = logit_NU.shape, cfg.groups
  if U % G or cfg.k > U:
    raise Wrong(
      f"grouped_topk: {U} ids cannot form {G} groups that provide {cfg.k // G} choices each; use a"
      " number of experts that groups divides, no virtual ones, and a k that is not larger."
    )
  best_XK = routing.top_k(logit_NU.reshape(N * G, U // G), cfg.k // G)
  first_1G1 = jnp.arange(G)[None, :, None] * (U // G)
  expert_NK = (best_XK.reshape(N, G, -1) + first_1G1).swapaxes(1, 2).reshape(N, cfg.k)
  k_active = inputs.knobs.get("k_active", cfg.k)
  return jnp.where(jnp.arange(cfg.k)[None] < k_active, expert_NK, -1)


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities among all ids, each times the learned scale of its expert."""
  gate_NK = routing.take(jax.nn.softmax(logit_NU), expert_NK)
  if "scale_U" not in inputs.extras:
    return gate_NK  # outside a model, where nothing has been learnt
  return gate_NK * inputs.extras["scale_U"][jnp.clip(expert_NK, 0)]


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    scale_U = self.param("scale_E", jax.nn.initializers.ones, (inputs.num_experts,))
    scale_U = jnp.pad(scale_U.astype(jnp.float32), (0, len(inputs.virtual)), constant_values=1)
    extras = {**inputs.extras, "scale_U": scale_U}
    return params.linear_logits(self, inputs), inputs.replace(extras=extras)
