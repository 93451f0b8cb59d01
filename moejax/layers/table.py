"""The rows that a memory layer reads: its own, or a window of one table for all memory layers.

Paper:  Huang et al. 2025 (UltraMemV2), arXiv:2508.18756 (windows); Berges et al. 2024 (Memory+),
        arXiv:2412.09764 (one table for all layers).
Study:  configs/studies/memory_vs_moe.py

Shared, the table has `rows` rows. The m-th memory layer of the model sees as many as it has slots,
from row m * rows / readers on and round the end, so that neighbours overlap; a fixed random
permutation (collection `placement`) then says where a row lies. A row is a value of `width`
numbers and, where `pre` is set, a vector of so many that the token is compared with.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 64  # of a value
  pre: int = 0  # of the vector beside it; 0 = none
  rows: int = 0  # of a table that layers share; 0 = each layer has its own, a row for each slot
  readers: int = 1  # layers that share it
  std: float = 0.02  # of the first rows

  def __post_init__(self):
    if self.width < 1 or self.pre < 0 or self.std <= 0:
      raise Wrong(
        f"table: width is {self.width}, pre is {self.pre} and std is {self.std}; use a width of at"
        " least 1, a pre of at least 0, and a std above 0."
      )
    if self.rows < 0 or self.readers < 1 or self.rows % self.readers:
      raise Wrong(
        f"table: {self.rows} rows cannot be cut into the first rows of {self.readers} readers; make"
        " rows a multiple of readers."
      )
    if self.readers > 1 and not self.rows:
      raise Wrong(
        f"table: {self.readers} readers have no rows to share; set rows, or take readers out."
      )


def check(name: str, cfg: Config, slots: int):
  """Refuses a shared table that is smaller than the window of a layer."""
  if is_shared(cfg) and cfg.rows < slots:
    raise Wrong(
      f"{name}: {slots} slots (keys^2) do not fit into a table of {cfg.rows} rows; lower keys, or"
      " raise table.rows."
    )


def is_shared(cfg: Config) -> bool:
  """Whether it is the one table of all layers."""
  return cfg.rows > 0


def init_carry(cfg, n: int) -> dict:
  """How many memory layers there were before."""
  return {"memory_layer": jnp.int32(0)} if is_shared(cfg) else {}


def declare(module, cfg: Config, rows: int) -> dict:
  """value_PF, and pre_PR where there is one."""
  init = jax.nn.initializers.normal(cfg.std)
  leaves = {"value_PF": module.param("value_PF", init, (rows, cfg.width))}
  if cfg.pre:
    leaves["pre_PR"] = module.param("pre_PR", init, (rows, cfg.pre))
  return leaves


class Shared(nn.Module):
  """The table of all layers together, declared once in the model."""

  cfg: Config

  @nn.compact
  def __call__(self, ctx):
    rows = self.cfg.rows
    draw = lambda: jax.random.permutation(self.make_rng("params"), rows).astype(jnp.int32)
    order_P = self.variable("placement", "order_P", draw).value
    return {"order_P": order_P, **declare(self, self.cfg, rows)}


def rows_of(module, cfg: Config, slot_NHK, slots: int, ctx):
  """(leaves, row_NHK, carry): where the chosen slots of a layer lie."""
  if not is_shared(cfg):
    return declare(module, cfg, slots), slot_NHK, ctx.carry
  shared, m = ctx.shared["table"], ctx.carry["memory_layer"]
  at_NHK = window(slot_NHK, m, cfg.rows, cfg.readers)
  return shared, shared["order_P"][at_NHK], {**ctx.carry, "memory_layer": m + 1}


def window(slot_NHK, m, rows: int, readers: int) -> jax.Array:
  """Slots of the m-th memory layer as rows of the table, before the permutation.

  >>> window(jnp.array([0, 1, 5]), m=2, rows=6, readers=3).tolist()
  [4, 5, 3]
  """
  return (slot_NHK + m % readers * (rows // readers)) % rows
