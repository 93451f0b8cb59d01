"""Grouped matmul in Pallas Mosaic GPU, for Hopper in 16 bits, of 8-bit numbers too: TMA and wgmma.

The roles of warpgroups and the ways through shared memory are pallas_kernels/mosaic_blocks.py's.
Tiles begin where the rows of their expert begin (tiles.by_group), and are walked in bands of
columns, so that blocks that run together share rows and matrices in the L2 cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import choose
from pallas_kernels import mosaic_blocks as blocks
from pallas_kernels.grouped_matmul.mosaic_gpu_narrow import quantised as quantised
from pallas_kernels.mosaic_tiles import SHARED as SHARED
from pallas_kernels.mosaic_tiles import Config, Operand, Walk


def heuristic(part: str, mean: int, out: int) -> Config:
  """What to try first for so many rows per expert and columns of the result.

  >>> heuristic("forward", 512, 2048), heuristic("forward", 512, 2048).shared() <= SHARED
  (Config(rows=128, cols=256, stages=4, band=8, depth=64), True)
  """
  cols = next((c for c in (256, 192) if out % c == 0), 128)
  rows = 128 if mean >= 96 or part == "d_rhs" or cols == 192 else 64
  return Config(rows, cols, 4 if rows == 128 else 5)


def candidates(part: str, mean: int, out: int) -> list[Config]:
  """What a tuner tries, the heuristic first.

  >>> all(c.shared() <= SHARED for c in candidates("forward", 512, 2048))
  True
  """
  more = [(128, 256, 3), (128, 128, 6), (128, 192, 4), (256, 128, 4)]
  more += [(128, 256, 4, 4), (128, 256, 4, 16)] if part != "d_rhs" else []
  more += [(64, 256, 5), (64, 128, 8)] if mean < 256 and part != "d_rhs" else []
  usable = [Config(*c) for c in more if out % c[1] == 0]
  return list(dict.fromkeys([heuristic(part, mean, out), *usable]))


def forward(x_MD, w_EDF, size_E, *, config: Config | None = None):
  """y[m] = x[m] @ w[expert of m]; zeros beyond the last group."""
  return _rows("forward", x_MD, w_EDF, size_E, config)


def d_lhs(g_MF, w_EDF, size_E, *, config: Config | None = None):
  """dx[m] = g[m] @ w[expert of m].T."""
  return _rows("d_lhs", g_MF, w_EDF, size_E, config)


def _rows(part, x_MI, w, size_E, config):
  """Each row times the matrix of its expert, turned in d_lhs: inputs I, outputs O."""
  across = part == "d_lhs"
  (M, I), E, O = x_MI.shape, w.shape[0], w.shape[1 if across else 2]
  shape = {"M": M, "D": O if across else I, "F": I if across else O, "E": E}
  c = config or _tuned(part, shape, x_MI.dtype, O)
  blocks.refuse((x_MI.dtype, w.dtype), {"inputs": (I, c.depth), "columns": (O, c.cols)})
  walk = Walk(c, size_E, M, E, O)

  def body(block, *refs):
    *map_, x_MI, w, y_MO = refs
    tile = functools.partial(walk.tile, map_)

    def copy(i, k, start):
      expert, first, _, col = tile(i)
      inputs, outputs = pl.ds(k * c.depth, c.depth), pl.ds(col, c.cols)
      own = w.at[expert, outputs, inputs] if across else w.at[expert, inputs, outputs]
      start(x_MI.at[pl.ds(first, c.rows), inputs], own)

    def length(i):
      return jnp.where(tile(i)[0] < E, I // c.depth, 0)  # rows of no expert: zeros

    def finish(i, done):
      (y,), _, done = block.summed(length(i), done)
      block.write_rows(tile(i), lambda *own: [blocks.columns(y, *own)], [y_MO])
      return done

    block.run(walk.number(map_), length, copy, finish)

  operands = Operand("a", True, x_MI.dtype), Operand("b", across, w.dtype)
  outs = [jax.ShapeDtypeStruct((M, O), x_MI.dtype)]
  run = blocks.kernel(body, c, operands, [(0, 1)], outs, f"grouped_matmul_{part}")
  return run(*walk.map, x_MI, w)[0]


def d_rhs(x_MD, g_MF, size_E, *, config: Config | None = None):
  """dw[e] = sum over the rows m of e of x[m] g[m]; zeros for an expert without rows."""
  (M, D), F, E = x_MD.shape, g_MF.shape[1], len(size_E)
  c = config or _tuned("d_rhs", {"M": M, "D": D, "F": F, "E": E}, x_MD.dtype, F)
  blocks.refuse((x_MD.dtype, g_MF.dtype), {"inputs": (D, c.rows), "columns": (F, c.cols)})
  blocks_d, blocks_f = D // c.rows, F // c.cols
  last_E = jnp.minimum(jnp.cumsum(size_E, dtype=jnp.int32), M)
  first_E = jnp.append(0, last_E[:-1]).astype(jnp.int32)

  def body(block, first_E, last_E, x_MD, g_MF, dw_EDF):
    def tile(i):
      e, place = lax.div(i, blocks_d * blocks_f), lax.rem(i, blocks_d * blocks_f)
      return e, lax.div(place, blocks_f) * c.rows, lax.rem(place, blocks_f) * c.cols

    def length(i):
      e = tile(i)[0]
      return lax.div(last_E[e] - first_E[e] + c.depth - 1, c.depth)

    def copy(i, k, start):
      e, d, f = tile(i)
      rows = pl.ds(first_E[e] + k * c.depth, c.depth)
      start(x_MD.at[rows, pl.ds(d, c.rows)], g_MF.at[rows, pl.ds(f, c.cols)])

    def finish(i, done):
      e, d, f = tile(i)
      left = lambda k: last_E[e] - first_E[e] - k * c.depth
      (dw,), _, done = block.summed(length(i), done, before=lambda k, refs: _mask(left(k), c, refs))
      row, col = block.half()
      values = lambda *own: [blocks.columns(dw, *own)]
      block.write(values, [dw_EDF.at[e]], c.half()[0], d + row, f + col)
      return done

    block.run(E * blocks_d * blocks_f, length, copy, finish)

  operands = Operand("a", False, x_MD.dtype), Operand("b", False, g_MF.dtype)
  outs = [jax.ShapeDtypeStruct((E, D, F), x_MD.dtype)]
  run = blocks.kernel(body, c, operands, [(0, 1)], outs, "grouped_matmul_d_rhs")
  return run(first_E, last_E, x_MD, g_MF)[0]


def _mask(left, c, refs) -> None:
  """Zeros in the rows of other experts, in shared memory."""

  @pl.when(left < c.depth)
  def _():
    for ref in refs:
      row = plgpu.broadcasted_iota(jnp.int32, ref.shape, 0, layout=plgpu.Layout.WGMMA)
      ref[...] = jnp.where(row < left, ref[...], jnp.zeros((), ref.dtype))
    plgpu.commit_smem()


def _tuned(part: str, shape: dict, dtype, out: int) -> Config:
  """What was fastest at a shape like this one, if it was measured and its columns divide these."""
  found = choose.config("grouped_matmul", part, shape, dtype, "mosaic_gpu")
  if found and out % Config(*found).cols == 0:
    return Config(*found)
  return heuristic(part, shape["M"] // shape["E"], out)
