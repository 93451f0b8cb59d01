"""Tiles of kernels in Pallas Mosaic GPU: their sizes, what they take of shared memory, order."""

import math
import typing

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import tiles

MULTIPLIERS = 2  # warpgroups; one more copies
SHARED = 227 * 1024  # bytes of shared memory that a block may have
WRITTEN = 128  # bytes of a row that are written at a time, the widest swizzle
TURNED = 64  # rows that are written at a time, if they were columns of a tile


class Config(typing.NamedTuple):
  """A tile of rows x cols, depth products of which are in shared memory `stages` times."""

  rows: int
  cols: int
  stages: int
  band: int = 8
  depth: int = 64

  def half(self) -> tuple[int, int]:
    """What one warpgroup multiplies: half of the rows, or of the columns where rows are few."""
    return (self.rows // 2, self.cols) if self.rows >= 128 else (self.rows, self.cols // 2)

  def shared(self, operands: int | None = None, written: int | None = None) -> int:
    """Bytes of shared memory: operands (given, or two in 16 bits), results on their way, barriers.

    >>> Config(128, 256, 4).shared() // 1024, Config(128, 256, 4).slots()
    (225, 2)
    """
    operands, written = operands or self.operands(), written or self.written()
    return operands + self.slots(operands, written) * written + 1024

  def slots(self, operands: int | None = None, written: int | None = None) -> int:
    """Results on their way out at once: one waits while the other is filled, if there is space."""
    operands, written = operands or self.operands(), written or self.written()
    return 2 if operands + 2 * written + 1024 <= SHARED else 1

  def operands(self) -> int:
    """Bytes of two operands in 16 bits."""
    return 2 * self.stages * self.depth * (self.rows + self.cols)

  def written(self, turned: bool = False) -> int:
    """Bytes that the warpgroups write at a time; `turned` if columns of a tile become rows."""
    rows = min(TURNED, self.cols) if turned else self.half()[0]
    return MULTIPLIERS * rows * WRITTEN


class Operand(typing.NamedTuple):
  """Slices of what is multiplied: the tile's rows (side "a") or columns ("b") of some inputs.

  `inner` says that inputs lie beside one another in memory; "scale" is one number for each row of
  the tile ("a") or column.
  """

  side: str
  inner: bool
  dtype: typing.Any
  wide: typing.Any = None  # the dtype of 16 bits that "a" is given in registers, to be multiplied
  scale: bool = False

  def shape(self, c: Config) -> tuple[int, ...]:
    """Of one slice."""
    size = c.rows if self.side == "a" else c.cols
    if self.scale:
      return (size,)
    return (size, c.depth) if self.inner else (c.depth, size)

  def bytes(self, c: Config) -> int:
    """Of all slices of it in shared memory."""
    return c.stages * math.prod(self.shape(c)) * jnp.dtype(self.dtype).itemsize

  def smem(self, c: Config):
    """All slices of it in shared memory."""
    shape = self.shape(c)
    lying = () if self.scale else swizzled(8, shape[-1], self.dtype)
    return plgpu.SMEM((c.stages, *shape), self.dtype, transforms=lying)


def shared(c: Config, operands: typing.Sequence[Operand], turned: bool = False) -> int:
  """Bytes of shared memory that a kernel takes."""
  return c.shared(sum(o.bytes(c) for o in operands), c.written(turned))


def swizzled(rows: int, inner: int, dtype):
  """How slices lie in shared memory, so that neither copies nor wgmma meet in one bank."""
  width = min(128, inner * jnp.dtype(dtype).itemsize)
  tile = plgpu.TilingTransform((rows, width // jnp.dtype(dtype).itemsize))
  return tile, plgpu.SwizzleTransform(width)


class Walk:
  """Which tile is which where each row meets the matrix of its expert, [M, O] by config."""

  def __init__(self, c: Config, size_E, M: int, E: int, O: int):
    self.config, self.columns, self.experts = c, O // c.cols, E
    self.band = max(b for b in range(1, c.band + 1) if self.columns % b == 0)
    expert_T, first_T, last_T = tiles.by_group(size_E, M, c.rows)
    live_1 = jnp.sum(first_T < last_T, dtype=jnp.int32)[None]  # those with rows come first
    self.map = expert_T, first_T, last_T, live_1

  def number(self, map_):
    """Of tiles that have rows."""
    return map_[3][0] * self.columns

  def tile(self, map_, i):
    """(expert, first row, rows, first column) of tile i."""
    expert_T, first_T, last_T, live_1 = map_
    outer, inner = lax.div(i, live_1[0] * self.band), lax.rem(i, live_1[0] * self.band)
    t = lax.div(inner, self.band)
    first, col = first_T[t], (outer * self.band + lax.rem(inner, self.band)) * self.config.cols
    return expert_T[t], first, last_T[t] - first, col
