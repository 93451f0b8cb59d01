"""Grouped matmul of 8-bit weights in Pallas Mosaic GPU, for Hopper: the pass `quantised`.

Weights must be `turned`, with the summed axis innermost: so the tensor cores read 8-bit numbers.

Rows of 16 bits: both operands must have one dtype, and only the left one may come from registers.
So the weights are the left one: each warpgroup widens its slice of them on the way to the tensor
cores, and a tile is written turned. Experts with few rows have narrow tiles, down to 16 rows.

Rows of 8 bits too: the tensor cores multiply the few bits themselves, twice as fast.

A slice brings the scales of its columns along. Scales of blocks of inputs, and sums of 8-bit
floats, which the tensor cores keep with some 14 bits only, join float32 sums in registers block by
block; these take room, so that such tiles are half as large.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import choose
from pallas_kernels import mosaic_blocks as blocks
from pallas_kernels.grouped_matmul.quantised import Quantised
from pallas_kernels.mosaic_tiles import Config, Operand, Walk

NARROW = ("int8", "float8_e4m3fn", "float8_e5m2")
PROMOTED = 128  # inputs of 8-bit floats that are summed by the tensor cores alone


def heuristic(widened: bool, summed: int, inputs: int, mean: int, out: int) -> Config:
  """What to try first where so many of the inputs are summed before they join other sums.

  Where weights are widened, the rows of a tile are columns of weights, its columns rows.

  >>> heuristic(True, 2048, 2048, 512, 2048), heuristic(True, 2048, 2048, 8, 2048).cols
  (Config(rows=128, cols=256, stages=4, band=8, depth=64), 16)
  >>> heuristic(False, 128, 2048, 512, 2048)
  Config(rows=128, cols=128, stages=6, band=8, depth=128)
  """
  whole = summed == inputs
  if widened:
    cols = 256 if whole and mean >= 192 else 128 if mean >= 96 else 64
    cols = cols if mean >= 48 else 32 if mean >= 24 else 16
    return Config(128, cols, {256: 4, 128: 6}.get(cols, 8))
  cols = 256 if whole and out % 256 == 0 else 128
  return Config(128 if mean >= 96 else 64, cols, 4 if cols == 256 else 6, depth=128)


def quantised(x_MD, w: Quantised, size_E, *, config: Config | None = None):
  """y[m] = x[m] @ w[expert of m]; zeros beyond the last group. float32 of rows of 8 bits."""
  widened = not isinstance(x_MD, Quantised)
  x, size_E = (x_MD if widened else x_MD.values), size_E.astype(jnp.int32)
  (M, D), (E, _, F), B = x.shape, w.shape, w.scale.shape[1]
  summed = _summed(x, D // B)
  _refuse(x, w, widened)
  c = config or _tuned(x, w, widened, summed)
  tile_rows, tile_cols = (c.cols, c.rows) if widened else (c.rows, c.cols)
  sizes = {"inputs": (D, c.depth), "inputs of a scale": (D // B, c.depth)}
  blocks.refuse([x.dtype] if widened else [], sizes | {"columns": (F, tile_cols)})
  parts, walk = D // summed, Walk(c._replace(rows=tile_rows, cols=tile_cols), size_E, M, E, F)

  def body(block, *refs):
    *map_, x_MD, w, scale_EBF = refs[:7]
    scale_M, y_MF = refs[7:-1], refs[-1]
    tile = functools.partial(walk.tile, map_)

    def copy(i, k, start):
      expert, first, _, col = tile(i)
      inputs, cols = pl.ds(k * c.depth, c.depth), pl.ds(col, tile_cols)
      own = x_MD.at[pl.ds(first, tile_rows), inputs], w.at[expert, cols, inputs]
      start(*own[:: -1 if widened else 1], scale_EBF.at[expert, lax.div(k * c.depth, D // B), cols])

    def length(i):
      return jnp.where(tile(i)[0] < E, D // c.depth, 0)  # rows of no expert: zeros

    half, of_w, of_x = c.half(), 0 if widened else 1, 1 if widened else 0

    def alike(ref, start, axis):
      """Numbers for rows or columns of this half of a tile, in each place of it."""
      own, layout = (
        pl.ds(start + block.half()[axis], half[axis]),
        plgpu.Layout.WGMMA.reduce(1 - axis),
      )
      own = plgpu.load(ref, own, layout=layout, optimized=False)
      return lax.broadcast_in_dim(own, half, (axis,))

    def scaled(length, done):
      """Sums over some slices, by the scales that came with the last."""
      read = lambda refs: alike(refs[2], 0, of_w)
      (y,), scale, done = block.summed(length, done, dtype=exact, read=read)
      return y.astype(jnp.float32) * scale, done

    def finish(i, done):
      expert, first, size, col = tile(i)
      if parts == 1:
        y, done = scaled(length(i), done)
      else:

        def join(_, carry):
          y, done = scaled(summed // c.depth, carry[1])
          return carry[0] + y, done

        zeros = plgpu.layout_cast(jnp.zeros(half, jnp.float32), plgpu.Layout.WGMMA)
        y, done = lax.fori_loop(0, jnp.where(expert < E, parts, 0), join, (zeros, done))
      for scale in scale_M:
        y *= alike(scale, first, of_x)
      y = jnp.where(expert < E, y, 0.0)  # whatever the scales of no expert are
      if widened:
        block.write_turned(y, y_MF, size, first, col + block.half()[0])
      else:
        block.write_rows(tile(i), lambda *own: [blocks.columns(y, *own)], [y_MF])
      return done

    block.run(walk.number(map_), length, copy, finish)

  exact = jnp.int32 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float32
  if widened:
    operands = Operand("a", True, w.values.dtype, wide=x.dtype), Operand("b", True, x.dtype)
  else:
    operands = Operand("a", True, x.dtype), Operand("b", True, w.values.dtype)
  scale = Operand("a" if widened else "b", True, jnp.float32, scale=True)
  outs = [jax.ShapeDtypeStruct((M, F), x.dtype if widened else jnp.float32)]
  name = "grouped_matmul_quantised"
  run = blocks.kernel(body, c, (*operands, scale), [(0, 1)], outs, name, turned=widened)
  scales = [w.scale.astype(jnp.float32)]
  if not widened:  # a tile may reach beyond the last row
    scales.append(jnp.pad(x_MD.scale[:, 0].astype(jnp.float32), (0, c.rows)))
  return run(*walk.map, x, w.values, *scales)[0]


def _summed(x, block: int) -> int:
  """Inputs that the tensor cores sum before they join other sums."""
  return PROMOTED if x.dtype.name.startswith("float8") and block % PROMOTED == 0 else block


def _tuned(x, w, widened: bool, summed: int) -> Config:
  """What was fastest at a shape like this one, if it was measured and its columns divide these."""
  (M, D), (E, _, F) = x.shape, w.shape
  shape, dtype = {"M": M, "D": D, "F": F, "E": E}, f"{x.dtype}*{w.values.dtype}"
  found = choose.config("grouped_matmul", "quantised", shape, dtype, "mosaic_gpu")
  if found and F % Config(*found)[0 if widened else 1] == 0:
    return Config(*found)
  return heuristic(widened, summed, D, M // E, F)


def _refuse(x, w, widened: bool) -> None:
  """Says which dtypes and layouts these kernels do not do."""
  if w.values.dtype.name not in NARROW or not widened and x.dtype != w.values.dtype:
    told = f"{x.dtype} rows with {w.values.dtype} weights"
    raise NotImplementedError(f"mosaic_gpu: no kernel for {told}")
  if not w.turned:
    raise NotImplementedError(
      "mosaic_gpu: wgmma reads 8-bit weights with the summed axis innermost only; "
      "quantise them with turned=True"
    )
