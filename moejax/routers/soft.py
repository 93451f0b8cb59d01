"""Soft MoE: an expert works on mixtures of the tokens of a group, a token gets one of all results.

Paper:  Puigcerver et al. 2023 (Soft MoE), arXiv:2308.00951.
Plan:   SoftPlan; the dispatch must be 'einsum'.   State: none.   Tokens: coupled inside a group.
Causal: no - every slot is a mean over the whole group.
Study:  configs/studies/lookahead.py
Differs from the paper: slots are counted per token of a group. Each has a vector in phi_DEC, so the
        parameters are those of one length of sequence.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core.plan import SoftPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  capacity_factor: float = 1.0  # slots per token


def choices(cfg):
  """Experts per token, on average: what its slots cost."""
  return cfg.capacity_factor


def causal(cfg) -> bool:
  """Never: a token is mixed with later ones."""
  return False


def slots(inputs, cfg) -> int:
  """Of one expert in one group."""
  n, E = len(inputs.x_ND) // inputs.groups, inputs.num_experts
  c = round(cfg.capacity_factor * n / E)
  if c < 1 or inputs.virtual:
    raise Wrong(
      f"soft: {c} slots per expert are less than one (tokens per group {n}, experts {E},"
      f" capacity_factor {cfg.capacity_factor}), or there are virtual experts"
      f" ({len(inputs.virtual)}); change capacity_factor or model.moe.groups, and leave"
      " model.moe.virtual empty."
    )
  return c


def choose(logit_NU, inputs, cfg):
  """The plan: slots are means over the tokens of a group, tokens are means over its slots.

  >>> from moejax.core.plan import RouterInputs
  >>> slot_NEC = jnp.log(jnp.array([[[3.0], [1.0]], [[1.0], [1.0]]]))
  >>> inputs = RouterInputs(x_ND=jnp.ones((2, 1)), num_experts=2, extras={"slot_NEC": slot_NEC})
  >>> plan = choose(None, inputs, Config())
  >>> plan.dispatch_NEC[..., 0].round(2).tolist()
  [[0.75, 0.5], [0.25, 0.5]]
  >>> plan.combine_NEC[..., 0].round(2).tolist()
  [[0.75, 0.25], [0.5, 0.5]]
  """
  slots(inputs, cfg)
  slot_NEC, G = inputs.extras["slot_NEC"], inputs.groups
  N, E, C = slot_NEC.shape
  valid_N = jnp.ones(N, bool) if inputs.valid_N is None else inputs.valid_N
  valid_GnS = valid_N.reshape(G, -1, 1)
  logit_GnS = jnp.where(valid_GnS, slot_NEC.reshape(G, -1, E * C), -1e9)  # finite: no NaN
  dispatch_GnS = jax.nn.softmax(logit_GnS, axis=1) * valid_GnS
  combine_GnS = jax.nn.softmax(logit_GnS, axis=2) * valid_GnS
  return SoftPlan(dispatch_GnS.reshape(N, E, C), combine_GnS.reshape(N, E, C), G)


def unit(a, axis: int):
  """Vectors of length one."""
  return a * jax.lax.rsqrt(jnp.sum(a**2, axis=axis, keepdims=True) + 1e-12)


class Router(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, inputs):
    """The logits of the slots for `choose`; those of experts have the same probabilities."""
    x_ND, E = inputs.x_ND.astype(jnp.float32), inputs.num_experts
    shape = (x_ND.shape[1], E, slots(inputs, self.cfg))
    phi_DEC = self.param("phi_DEC", jax.nn.initializers.normal(1.0), shape).astype(jnp.float32)
    scale_H = self.param("scale_H", jax.nn.initializers.ones, (1,))  # of one head
    slot_NEC = jnp.einsum("ND,DEC->NEC", unit(x_ND, 1), unit(phi_DEC, 0))
    slot_NEC = scale_H[:, None, None].astype(jnp.float32) * slot_NEC
    inputs = inputs.replace(extras={**inputs.extras, "slot_NEC": slot_NEC})
    return jax.nn.logsumexp(slot_NEC, axis=2), inputs
