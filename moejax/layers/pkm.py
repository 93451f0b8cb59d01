"""Product-key memory: each head softmaxes over its k best of n^2 slots and adds up their values.

Paper:  Lample et al. 2019 (PKM), arXiv:1907.05242; Berges et al. 2024 (Memory+), arXiv:2412.09764.
Plan:   none: rows are looked up by index (layers/product_keys.py).   State: none.
Tokens: independent.   Causal: yes.
Study:  configs/studies/memory_vs_moe.py
Sums:   count_P, choices by slot.
Cost:   per token 2 heads key_width (width + n) FLOPs for the scores, and heads k rows of values.
Differs from the paper: no batch norm over queries; query weights start with the house's variance.

Memory+ is gated=True with a shared `table`: y = ((sum) * silu(x wg)) wo. Values learn best at a
rate of their own: optim.rules = [dict(match="P", lr=...)].
"""

import dataclasses
import typing

import flax.linen as nn
import jax

from moejax.core import params
from moejax.core.plugin import Wrong
from moejax.layers import product_keys
from moejax.layers import table as tables


@dataclasses.dataclass(frozen=True)
class Config:
  keys: int = 64  # n, of each half; the memory has n^2 slots
  heads: int = 2
  k: int = 8  # slots of a head
  key_width: int = 32  # of a query, both halves
  gated: bool = False
  table: typing.Any = None  # layers/table.py; None = own values, as wide as the model

  def __post_init__(self):
    product_keys.check("pkm", self)
    if self.table is not None:
      tables.check("pkm", self.table, self.keys**2)
      if self.table.pre:
        raise Wrong(
          f"pkm: table.pre is {self.table.pre}, and this layer compares its token with no row; use"
          " 0, or the layer 'ultramem'."
        )


reads = product_keys.reads


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token: scores, values and the gated way out."""
  F = cfg.table.width if cfg.table else width
  values = 2.0 * reads(cfg) * F + (4.0 * width * F if cfg.gated else 0.0)
  return product_keys.flops(cfg, width) + values


class Layer(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_ND, ctx, router_x_ND=None):
    cfg, D, slots = self.cfg, x_ND.shape[1], self.cfg.keys**2
    table = cfg.table or tables.Config(width=D, std=D**-0.5)
    F = table.width
    if F != D and not cfg.gated:
      raise Wrong(
        f"pkm: values of width {F} cannot be added to a stream of width {D}; set table.width to"
        f" {D}, or gated=True, which projects them."
      )
    choose = product_keys.Lookup(cfg.heads, cfg.keys, cfg.key_width, cfg.k, name="router")
    score_NHK, slot_NHK = choose(x_ND if router_x_ND is None else router_x_ND)
    leaves, row_NHK, carry = tables.rows_of(self, table, slot_NHK, slots, ctx)
    y_ND = product_keys.mix(jax.nn.softmax(score_NHK), row_NHK, leaves["value_PF"])
    if cfg.gated:
      wg_DF = params.weight(self, "wg_DF", over="D", D=D, F=F)
      wo_FD = params.weight(self, "wo_FD", over="F", D=D, F=F)
      y_ND = (y_ND * jax.nn.silu(x_ND @ wg_DF)) @ wo_FD
    return y_ND.astype(x_ND.dtype), product_keys.usage(slot_NHK, slots, ctx.valid_N), carry
