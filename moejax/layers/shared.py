"""The shared expert: a dense FFN every token passes, and how it meets the routed experts.

Paper:  Dai et al. 2024 (DeepSeekMoE), arXiv:2401.06066 (one); Qwen2 2024, arXiv:2407.10671
        (sigmoid); Rajbhandari et al. 2022 (PR-MoE), arXiv:2201.05596 (coefficients).
Gates:  one           routed + shared
        sigmoid       routed + sigmoid(x v) shared
        joint         (1 - p) routed + p shared, p the shared expert's part of one softmax over the
                      router's logits and its own (exact for gates that are not renormalised)
        chosen        the same with a softmax over the chosen ids' logits and its own (exact for
                      gates that are renormalised), as in Uni-MoE-2.0 2025, arXiv:2511.12609
        coefficients  c0 routed + c1 shared, c = softmax(x W)
Several shared experts of width F are one of width n F, since SwiGLU is separable along F.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong
from moejax.layers import mlp


@dataclasses.dataclass(frozen=True)
class Config:
  hidden: int = 128
  gate: Literal["one", "sigmoid", "joint", "chosen", "coefficients"] = "one"


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token."""
  gate = {"one": 0, "coefficients": 2}.get(cfg.gate, 1)
  return mlp.flops(mlp.Config(cfg.hidden), width, seq_len) + 2.0 * width * gate


def joint(logit_NU, own_N1):
  """The shared expert's probability in one softmax with the router's ids.

  >>> joint(jnp.zeros((1, 3)), jnp.zeros((1, 1))).tolist()
  [[0.25]]
  """
  return jax.nn.sigmoid(own_N1 - jax.nn.logsumexp(logit_NU, axis=1, keepdims=True))


def chosen(logit_NU, plan, own_N1):
  """Its probability in one softmax with the ids that the token chose; 1 for one that chose none.

  >>> plan = TokenPlan(jnp.array([[1, -1], [-1, -1]]), jnp.ones((2, 2)), num_experts=3)
  >>> chosen(jnp.zeros((2, 3)), plan, jnp.zeros((2, 1))).tolist()
  [[0.5], [1.0]]
  """
  if not isinstance(plan, TokenPlan):
    raise Wrong("shared: gate 'chosen' needs a router whose tokens choose experts; use 'joint'.")
  all_NK = jnp.concatenate([own_N1, routing.take(logit_NU, plan.expert_NK)], axis=1)
  used_NK = jnp.concatenate([jnp.ones_like(own_N1, bool), plan.expert_NK >= 0], axis=1)
  return jax.nn.softmax(all_NK, where=used_NK)[:, :1]


class Layer(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_ND, routed_ND, logit_NU, plan, ctx):
    """The layer's output from the routed one."""
    shared_ND, _, _ = mlp.Layer(mlp.Config(self.cfg.hidden), name="mlp")(x_ND, ctx)
    if self.cfg.gate == "one":
      return routed_ND + shared_ND
    logit_NG = self._gate(x_ND, 2 if self.cfg.gate == "coefficients" else 1)
    if self.cfg.gate == "coefficients":
      c_NG = jax.nn.softmax(logit_NG)
      c_routed_N1, c_shared_N1 = c_NG[:, :1], c_NG[:, 1:]
    elif self.cfg.gate in ("joint", "chosen"):
      of_all = self.cfg.gate == "joint"
      c_shared_N1 = joint(logit_NU, logit_NG) if of_all else chosen(logit_NU, plan, logit_NG)
      c_routed_N1 = 1 - c_shared_N1
    else:
      c_routed_N1, c_shared_N1 = 1.0, jax.nn.sigmoid(logit_NG)
    return (c_routed_N1 * routed_ND + c_shared_N1 * shared_ND).astype(x_ND.dtype)

  def _gate(self, x_ND, columns):
    """Logits in float32, like a router's."""
    gate_DG = params.weight(self, "gate_DG", over="D", D=x_ND.shape[1], G=columns)
    return x_ND.astype(jnp.float32) @ gate_DG.astype(jnp.float32)
