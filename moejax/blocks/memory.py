"""Attention, then an FFN and a memory layer beside it: both read the same x, both are added.

Paper:  Huang et al. 2025 (UltraMemV2), arXiv:2508.18756.
Causal: yes.
Study:  configs/studies/memory_vs_moe.py

A memory layer in place of the FFN needs no block of its own: ffn = dict(name="pkm", ...) in any.
"""

import dataclasses
import typing

import flax.linen as nn

from moejax.core import plugin
from moejax.layers.basic import Norm


@dataclasses.dataclass(frozen=True)
class Config:
  attention: typing.Any
  ffn: typing.Any  # layers/mlp.py or layers/moe.py
  memory: typing.Any  # layers/pkm.py, layers/peer.py or layers/ultramem.py
  norm_eps: float = 1e-6


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token."""
  parts = (cfg.attention, cfg.ffn, cfg.memory)
  return sum(plugin.module(part).flops(part, width, seq_len) for part in parts)


class Block(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD, ctx):
    eps, sums, carry = self.cfg.norm_eps, {}, ctx.carry
    attention = plugin.module(self.cfg.attention).Attention(self.cfg.attention, name="attention")
    x_BTD = x_BTD + attention(Norm(eps, name="attention_norm")(x_BTD), ctx)
    x_ND = Norm(eps, name="ffn_norm")(x_BTD).reshape(-1, x_BTD.shape[-1])
    for name in ("ffn", "memory"):
      cfg = getattr(self.cfg, name)
      layer = plugin.module(cfg).Layer(cfg, name=name)
      y_ND, sums[name], carry = layer(x_ND, ctx.replace(carry=carry))
      x_BTD = x_BTD + y_ND.reshape(x_BTD.shape)
    return x_BTD, sums, carry
