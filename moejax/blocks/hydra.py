"""Hydra: a state space backbone, and gated branches of attention, workspace, memory and experts.

Paper:  Chaudhary and Browne 2025 (Hydra), arXiv:2508.15099.
Causal: yes.
Study:  configs/studies/hydra.py
Differs from the paper: its text gives no formulas; the order of the branches and the form of the
        gates are of this file.

x = x + ssm(norm(x)), then for each branch that the layer has x = x + open * gate * branch(norm(x)),
gate = sigmoid(norm(x) w + b) of each token. b starts at gate_start, which leaves a branch nearly
closed, and `open` is the knob open_<branch>, 1 without one: a schedule of it opens a branch during
training. With all branches closed a layer is the bare backbone.

The whole published block has sparse attention in every n-th layer (attention.window and .anchors),
the router `chunk` in `moe`, `workspace`, and product keys in `memory`; a None takes a branch out.
"""

import dataclasses
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core import plugin
from moejax.layers import ssm as backbone
from moejax.layers.basic import Norm

BRANCHES = ("attention", "workspace", "memory", "moe")


@dataclasses.dataclass(frozen=True)
class Config:
  ssm: typing.Any  # layers/ssm.py
  attention: typing.Any = None
  workspace: typing.Any = None  # layers/workspace.py
  memory: typing.Any = None  # layers/pkm.py
  moe: typing.Any = None
  gate_start: float = -4.0  # sigmoid(-4) = 0.018
  norm_eps: float = 1e-6


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token."""
  parts = [part for name in BRANCHES if (part := getattr(cfg, name))]
  gates = 2.0 * width * len(parts)
  parts.append(cfg.ssm)
  return gates + sum(plugin.module(part).flops(part, width, seq_len) for part in parts)


class Block(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD, ctx):
    cfg, sums = self.cfg, {}
    normed_BTD = Norm(cfg.norm_eps, name="ssm_norm")(x_BTD)
    x_BTD = x_BTD + backbone.Layer(cfg.ssm, name="ssm")(normed_BTD, ctx)
    for name in BRANCHES:
      part = getattr(cfg, name)
      if part is None:
        continue
      normed_BTD = Norm(cfg.norm_eps, name=f"{name}_norm")(x_BTD)
      if name == "attention":
        y_BTD = plugin.module(part).Attention(part, name=name)(normed_BTD, ctx)
      elif name == "workspace":
        y_BTD = plugin.module(part).Layer(part, name=name)(normed_BTD, ctx)
      else:
        layer = plugin.module(part).Layer(part, name=name)
        y_ND, sums[name], carry = layer(normed_BTD.reshape(-1, x_BTD.shape[-1]), ctx)
        y_BTD, ctx = y_ND.reshape(x_BTD.shape), ctx.replace(carry=carry)
      gate_BT1 = ctx.knobs.get(f"open_{name}", 1.0) * self._gate(name, normed_BTD)
      x_BTD = x_BTD + gate_BT1.astype(y_BTD.dtype) * y_BTD
    return x_BTD, sums, ctx.carry

  def _gate(self, name, normed_BTD):
    """How far the branch is open for each token."""
    gate_D = self.param(f"gate_{name}_D", jax.nn.initializers.zeros, normed_BTD.shape[-1:])
    start = jax.nn.initializers.constant(self.cfg.gate_start)
    bias_G = self.param(f"bias_{name}_G", start, (1,)).astype(jnp.float32)
    return jax.nn.sigmoid(normed_BTD.astype(jnp.float32) @ gate_D[:, None] + bias_G[None, None])
