"""PEER: a slot is an expert of one hidden unit, and product keys choose a few of very many.

Paper:  He 2024 (Mixture of a Million Experts), arXiv:2407.04153.
Plan:   none: rows are looked up by index (layers/product_keys.py).   State: none.
Tokens: independent.   Causal: yes.
Study:  configs/studies/memory_vs_moe.py
Sums:   count_P, choices by slot.
Cost:   per token 2 heads key_width (width + n) FLOPs for the scores, and 2 heads k rows.
Differs from the paper: no batch norm over queries; rows start normal with variance 1 / width.

y = sum over heads and their k slots e of gate_e act(in_e x) value_e. With in_e x = 1 and the
identity as activation it is PKM.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.layers import product_keys

GATES = {"softmax": jax.nn.softmax, "relu": jax.nn.relu}
ACTIVATIONS = {"gelu": jax.nn.gelu, "identity": lambda x: x}


@dataclasses.dataclass(frozen=True)
class Config:
  keys: int = 64  # n, of each half; there are n^2 experts
  heads: int = 2
  k: int = 8  # experts of a head
  key_width: int = 32  # of a query, both halves
  gate: Literal["softmax", "relu"] = "softmax"  # relu: experts do not compete
  activation: Literal["gelu", "identity"] = "gelu"

  def __post_init__(self):
    product_keys.check("peer", self)


reads = product_keys.reads


def flops(cfg: Config, width: int, seq_len: int) -> float:
  """Forward FLOPs per token: scores, and the two vectors of each expert."""
  return product_keys.flops(cfg, width) + 4.0 * reads(cfg) * width


def hidden(x_ND: jax.Array, row_NHK: jax.Array, table_PD: jax.Array) -> jax.Array:
  """The product of each token with each of its rows.

  >>> hidden(jnp.array([[2., 3.]]), jnp.array([[[1]]]), jnp.eye(2)).tolist()
  [[[3.0]]]
  """
  row_NM = row_NHK.reshape(len(x_ND), -1)
  return jnp.einsum("ND,NMD->NM", x_ND, table_PD[row_NM]).reshape(row_NHK.shape)


class Layer(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_ND, ctx, router_x_ND=None):
    cfg, D, slots = self.cfg, x_ND.shape[1], self.cfg.keys**2
    choose = product_keys.Lookup(cfg.heads, cfg.keys, cfg.key_width, cfg.k, name="router")
    score_NHK, slot_NHK = choose(x_ND if router_x_ND is None else router_x_ND)
    init = jax.nn.initializers.normal(D**-0.5)
    in_PD = self.param("in_PD", init, (slots, D))
    value_PD = self.param("value_PD", init, (slots, D))
    act_NHK = ACTIVATIONS[cfg.activation](hidden(x_ND, slot_NHK, in_PD))
    y_ND = product_keys.mix(GATES[cfg.gate](score_NHK) * act_NHK, slot_NHK, value_PD)
    return y_ND.astype(x_ND.dtype), product_keys.usage(slot_NHK, slots, ctx.valid_N), ctx.carry
