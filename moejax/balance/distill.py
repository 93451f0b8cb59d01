"""Distillation of routing: a second router learns the choices of the one that routes.

Paper:  Dai et al. 2022 (StableMoE), arXiv:2204.08396.
Sums:   cross_entropy (of the second router's softmax with every choice); reads count_U of the
        layer and inputs.extras["light_NU"], the second router's logits (routers/stable.py).
Value:  the mean over choices per layer: log(U) where the second router's logits are all the same.
        It asks for agreement and not for an even load; the router that chose gets no gradient.
Study:  configs/studies/baselines.py
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import routing, sums
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 1.0


def observe(plan, logit_NU, inputs, cfg):
  """The sum of one layer."""
  if "light_NU" not in inputs.extras or not isinstance(plan, TokenPlan):
    raise Wrong(
      "distill: the router has no second one that could learn its choices; use the router 'stable',"
      " or take the balance entry out."
    )
  log_NU = jax.nn.log_softmax(inputs.extras["light_NU"])
  return {"cross_entropy": -jnp.sum(routing.take(log_NU, plan.expert_NK))}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> sums = {"cross_entropy": jnp.array([6.0]), "count_U": jnp.array([[3.0, 1.0]])}
  >>> float(loss(sums, {}, Config()))
  1.5
  """
  return jnp.sum(sums.per(sums_L["cross_entropy"], sums_L["count_U"].sum(1)))
