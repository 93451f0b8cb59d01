"""The parallel block: attention and FFN read the same x, and both are added to it at once.

Paper:  Wang and Komatsuzaki 2021 (GPT-J), github.com/kingoflolz/mesh-transformer-jax (one norm);
        Black et al. 2022 (GPT-NeoX), arXiv:2204.06745 (two).
Causal: yes.
Differs from the paper: RMS norms, and no biases.
"""

import dataclasses
import typing

import flax.linen as nn

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.layers.basic import Norm


@dataclasses.dataclass(frozen=True)
class Config:
  attention: typing.Any
  ffn: typing.Any  # layers/moe.py or layers/mlp.py
  norms: int = 1  # 1: both read the same normalised x, as in GPT-J and Phi-2; 2: each its own
  norm_eps: float = 1e-6

  def __post_init__(self):
    if self.norms not in (1, 2):
      raise Wrong(f"parallel: norms is {self.norms}; 1 is shared by both branches, 2 are not.")


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token."""
  parts = (cfg.attention, cfg.ffn)
  return sum(plugin.module(part).flops(part, width, seq_len) for part in parts)


class Block(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD, ctx):
    cfg = self.cfg
    normed_BTD = Norm(cfg.norm_eps, name="attention_norm")(x_BTD)
    attention = plugin.module(cfg.attention).Attention(cfg.attention, name="attention")
    attended_BTD = attention(normed_BTD, ctx)
    if cfg.norms == 2:
      normed_BTD = Norm(cfg.norm_eps, name="ffn_norm")(x_BTD)
    ffn = plugin.module(cfg.ffn).Layer(cfg.ffn, name="ffn")
    y_ND, sums, carry = ffn(normed_BTD.reshape(-1, x_BTD.shape[-1]), ctx)
    return x_BTD + attended_BTD + y_ND.reshape(x_BTD.shape), {"ffn": sums}, carry
