"""Top-1 by an MLP on a down-projected token, averaged over depth; chosen with a bias.

Paper:  Zyphra 2025 (ZAYA1), arXiv:2511.17127; the router: arXiv:2605.05365.
Plan:   TokenPlan; virtual ids are ways to skip the experts, unlikely at first.
        State: bias_U, written once a step by a controller (balance/sign.py, balance/adamw.py);
        carry averaged_NR, with gradient.   Tokens: independent.
Causal: yes.
Study:  configs/studies/zaya_router.py
Differs from the paper: with k above 1 the choices after a skip are left unused, where the authors
        repeat the skip: the same for virtual ids of kind zero. `rank` is 256 there. In the first
        MoE layer the scale of the depth average exists and multiplies zeros.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import params, routing
from moejax.core.plugin import Wrong

SKIP_BIAS = -1.0  # of virtual ids at the start, so that early on no token skips its expert


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 1
  rank: int = 16
  average: bool = True  # over depth; without it, a plain MLP router
  norm_eps: float = 1e-6

  def __post_init__(self):
    if self.rank < 1:
      raise Wrong(f"depth_averaged: rank {self.rank} lets nothing through; use at least 1.")


def init_carry(cfg, n: int) -> dict:
  """What the first layer adds."""
  return {"averaged_NR": jnp.zeros((n, cfg.rank))} if cfg.average else {}


def flops(cfg, width: int, ids: int) -> float:
  """Forward FLOPs per token."""
  return 2.0 * cfg.rank * (width + 2 * cfg.rank + ids)


def gelu(x):
  """The exact one, with the error function."""
  return jax.nn.gelu(x, approximate=False)


def hidden(weights: dict, averaged_NR, eps: float, activation=gelu):
  """Two hidden layers on the normalised average; the third layer gives the logits."""
  u_NR = routing.rms_norm(averaged_NR, weights["scale_norm_R"], eps)
  for name in ("first", "second"):
    u_NR = activation(u_NR @ weights[f"{name}_RR"] + weights[f"{name}_R"][None])
  return u_NR


def select(logit_NU, inputs, cfg):
  """The ids of the highest probability + bias; what comes after a skip is unused.

  >>> from moejax.core.plan import RouterInputs
  >>> state = {"bias_U": jnp.array([0.0, 0.0, 0.2])}
  >>> inputs = RouterInputs(num_experts=2, virtual=("zero",), state=state)
  >>> select(jnp.log(jnp.array([[.4, .3, .3], [.6, .35, .05]])), inputs, Config(k=2)).tolist()
  [[2, -1], [0, 1]]
  """
  score_NU = jax.lax.stop_gradient(jax.nn.softmax(logit_NU)) + inputs.state["bias_U"][None]
  expert_NK = routing.top_k(score_NU, cfg.k, inputs.knobs.get("k_active"))
  skip_NK = (expert_NK >= inputs.num_experts).astype(jnp.int32)
  return jnp.where(jnp.cumsum(skip_NK, axis=1) > skip_NK, -1, expert_NK)


def weigh(logit_NU, expert_NK, inputs, cfg):
  """Their probabilities, without the bias and not renormalised."""
  return routing.take(jax.nn.softmax(logit_NU), expert_NK)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    x_ND, R = inputs.x_ND.astype(jnp.float32), self.cfg.rank
    in_DR = params.weight(self, "in_DR", over="D", D=x_ND.shape[1], R=R)
    averaged_NR, carry = x_ND @ in_DR + self._vector("in_R", 0)[None], inputs.carry
    if self.cfg.average:
      averaged_NR += self._vector("scale_depth_R", 1)[None] * carry["averaged_NR"]
      carry = {**carry, "averaged_NR": averaged_NR}
    weights = {"scale_norm_R": self._vector("scale_norm_R", 1)}
    for name in ("first", "second"):
      weights[f"{name}_RR"] = params.weight(self, f"{name}_RR", over="R", R=R)
      weights[f"{name}_R"] = self._vector(f"{name}_R", 0)
    hidden_NR = hidden(weights, averaged_NR, self.cfg.norm_eps)
    logit_NU = params.low_rank_logits(self, hidden_NR, inputs)
    start = lambda: jnp.where(jnp.arange(logit_NU.shape[1]) < inputs.num_experts, 0.0, SKIP_BIAS)
    bias_U = self.variable("router_state", "bias_U", start).value
    return logit_NU, inputs.replace(carry=carry, state={"bias_U": bias_U})

  def _vector(self, name, value):
    """A learnt number for every hidden unit."""
    return self.param(name, jax.nn.initializers.constant(value), (self.cfg.rank,))
