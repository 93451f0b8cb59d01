"""ScMoE: the MoE layer reads the stream after the first attention and is added at the end.

Paper:  Meituan LongCat Team 2025 (LongCat-Flash), arXiv:2509.01322; Cai et al. 2024,
        arXiv:2404.05019.
Causal: yes.
Study:  configs/studies/shortcut.py

Two attentions, two dense FFNs and one MoE layer:
a = x + attention_0(norm(x)); h = norm(a); m = moe(h)
a = a + mlp_0(h); a = a + attention_1(norm(a)); a = a + mlp_1(norm(a)); out = a + m
Nothing between the choice and the sum waits for m, so that a dispatch over devices can overlap with
the dense work. Without m it is two serial blocks with dense FFNs.

With `overlap`, the experts wait for mlp_0, so that a compiler which would leave all dense work to
the way back must put some under the way there: the single-batch overlap of LongCat-Flash. No number
changes. It needs a dispatch that sends (moejax/dispatch), and collectives that run beside
computation (on TPU the compiler option xla_tpu_enable_async_all_to_all). The compiler of v5p
arranges both exchanges over dense matmuls without being told, and alike with `overlap`
(configs/studies/overlap.py).
"""

import dataclasses
import typing

import flax.linen as nn

from moejax.core import plugin
from moejax.layers.basic import Norm


@dataclasses.dataclass(frozen=True)
class Config:
  attention: typing.Any  # of both
  mlp: typing.Any  # of both dense FFNs
  moe: typing.Any
  norm_eps: float = 1e-6
  overlap: bool = False  # experts wait for the first dense FFN


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token."""
  parts = (cfg.attention, cfg.attention, cfg.mlp, cfg.mlp, cfg.moe)
  return sum(plugin.module(part).flops(part, width, seq_len) for part in parts)


class Block(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD, ctx):
    cfg, shape = self.cfg, x_BTD.shape

    def attend(i, x_BTD):
      attention = plugin.module(cfg.attention).Attention(cfg.attention, name=f"attention_{i}")
      return x_BTD + attention(Norm(cfg.norm_eps, name=f"attention_norm_{i}")(x_BTD), ctx)

    def normed(i, x_BTD):
      return Norm(cfg.norm_eps, name=f"mlp_norm_{i}")(x_BTD).reshape(-1, shape[-1])

    def dense(i, x_ND):
      layer = plugin.module(cfg.mlp).Layer(cfg.mlp, name=f"mlp_{i}")
      return layer(x_ND, ctx)[0].reshape(shape)

    x_BTD = attend(0, x_BTD)
    h_ND = normed(0, x_BTD)
    between_BTD = x_BTD + dense(0, h_ND)
    seen = ctx.replace(after_ND=between_BTD.reshape(h_ND.shape) if cfg.overlap else None)
    routed_ND, sums, carry = plugin.module(cfg.moe).Layer(cfg.moe, name="moe")(h_ND, seen)
    x_BTD = attend(1, between_BTD)
    x_BTD = x_BTD + dense(1, normed(1, x_BTD))
    return x_BTD + routed_ND.reshape(shape), {"moe": sums}, carry
