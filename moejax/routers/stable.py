"""StableMoE: a router that learns, then a light one that has learnt from it and stays as it is.

Paper:  Dai et al. 2022 (StableMoE), arXiv:2204.08396.
Plan:   TokenPlan.   State: none.   Tokens: independent.
Causal: yes.
Study:  configs/studies/baselines.py
Differs from the paper: one table of word vectors serves the light routers of all layers, each of
        which has its own expert vectors. In both stages the gate is the sigmoid of the score of the
        router that learns, which goes on learning when it no longer chooses.

Stage 1, `routed_by` "learned": the highest x e chooses; balance/distill.py teaches the light router
its choices, balance/stable.py is the paper's balance loss. Stage 2, `routed_by` "light": the light
router chooses, by the token id alone. It stays as it is if it is left out of what is trained:

    stages=[dict(steps=1000),
            dict(steps=9000, trainable=r"^(?!stable/)(?!.*/light_R)",
                 changes={"model.moe.router.routed_by": "light", "model.moe.balance": {}})]
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
  k: int = 1
  rank: int = 32  # of the light router's word and expert vectors
  routed_by: Literal["learned", "light"] = "learned"


def flops(cfg, width: int, ids: int) -> float:
  """Of both routers, per token."""
  return 2.0 * (width + cfg.rank) * ids


def select(logit_NU, inputs, cfg):
  """The k highest scores of the router whose stage it is."""
  score_NU = logit_NU if cfg.routed_by == "learned" else inputs.extras["light_NU"]
  return routing.top_k(score_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """The sigmoid of the learned score, in both stages."""
  return routing.take(jax.nn.sigmoid(logit_NU), expert_NK)


class Shared(nn.Module):
  """The light router's word vectors, looked up once for all layers."""

  cfg: Config

  @nn.compact
  def __call__(self, ctx):
    if ctx.token_N is None or not ctx.vocab:
      raise Wrong(
        "stable: the model hands on no token ids, which its light router reads; use it in a model"
        " of tokens, as 'decoder', or another router."
      )
    shape = (ctx.vocab, self.cfg.rank)
    table_VR = self.param("table_VR", jax.nn.initializers.normal(1.0), shape)
    return {"light_NR": table_VR[ctx.token_N].astype(jnp.float32)}


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    E, Z, R = inputs.num_experts, len(inputs.virtual), self.cfg.rank
    light = [params.weight(self, "light_RE", over="R", R=R, E=E)]
    if Z:
      light.append(params.weight(self, "light_RZ", over="R", R=R, Z=Z))
    light_NU = routing.logits(inputs.shared["stable"]["light_NR"], *light)
    inputs = inputs.replace(extras={**inputs.extras, "light_NU": light_NU})
    return params.linear_logits(self, inputs), inputs
