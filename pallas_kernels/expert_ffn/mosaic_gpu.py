"""Gated expert FFNs in Pallas Mosaic GPU, for Hopper in 16 bits, of rows that are sorted first.

Forward, `up` has gate, up and activation in one pass over the rows, with two tiles of sums that
share each slice of rows; `down` is a grouped matmul. Backward, `d_act` turns the product of dy and
the matrix down into the gradients of both pre-activations while it is in registers, and makes the
hidden rows again; `d_rows` sums both products that make up the gradient of a row in one tile; the
gradients of weights are grouped matmuls.

Hopper's TMA has no gather, so rows are sorted by `permute`: two more passes over them than
triton.py needs, 4 D bytes to write and read a row. At 4.8 TB/s and 989 TFLOP/s this is 137 / F of
the time of the three matmuls, 6 D F operations. Where experts are narrow it is more than wgmma
could win back, and triton.py is left to do them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import mosaic_blocks as blocks
from pallas_kernels.grouped_matmul import mosaic_gpu as grouped
from pallas_kernels.mosaic_tiles import Config, Operand, Walk
from pallas_kernels.permute import permute, unpermute

NARROW = 1280  # columns of an expert, below which sorting costs more than a tenth of the matmuls
OWN = ("up", "d_act", "d_rows")  # what is not a grouped matmul


def heuristic(part: str, mean: int, out: int) -> Config:
  """What to try first for so many rows per expert and columns of the result.

  >>> heuristic("up", 512, 2048)
  Config(rows=128, cols=128, stages=4, band=8, depth=64)
  """
  if part == "d_rows":
    return grouped.heuristic("d_lhs", mean, out)
  return Config(128 if mean >= 96 else 64, 128, 4)


def swiglu(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, *, configs=None):
  """y[n] = sum over the rows of n of gate * (silu(x wg) * (x wu)) wo, with the row's expert.

  `configs` name parts of OWN and their settings; the others are guessed.
  """
  (E, D, F), M, dtype = wg_EDF.shape, len(token_M), x_ND.dtype
  if not x_ND.size * wg_EDF.size * M:
    raise NotImplementedError(f"mosaic_gpu: no kernel for rows of {dtype}{list(x_ND.shape)}")
  blocks.refuse([dtype], {"inputs": (D, 128), "columns of an expert": (F, 128)})
  if F < NARROW:
    raise NotImplementedError(f"mosaic_gpu: rows are not sorted for F={F}, less than {NARROW}")
  guessed = {part: heuristic(part, M // E, D if part == "d_rows" else F) for part in OWN}
  how = tuple((guessed | (configs or {})).items())
  x_MD = permute(x_ND, token_M, row_NK)
  y_MD = _rows(how, x_MD, wg_EDF, wu_EDF, wo_EFD, size_E)
  return unpermute(y_MD, gate_M, token_M, row_NK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(how, x_MD, wg_EDF, wu_EDF, wo_EFD, size_E):
  (h_MF,) = up(how, x_MD, wg_EDF, wu_EDF, size_E, kept=False)
  return grouped.forward(h_MF, wo_EFD, size_E)


def _forward(how, x_MD, wg_EDF, wu_EDF, wo_EFD, size_E):
  h_MF, g_MF, u_MF = up(how, x_MD, wg_EDF, wu_EDF, size_E, kept=True)
  y_MD = grouped.forward(h_MF, wo_EFD, size_E)
  return y_MD, (x_MD, wg_EDF, wu_EDF, wo_EFD, size_E, g_MF, u_MF)


def _backward(how, saved, dy_MD):
  x_MD, wg_EDF, wu_EDF, wo_EFD, size_E, g_MF, u_MF = saved
  dy_MD = dy_MD.astype(x_MD.dtype)
  dg_MF, du_MF, h_MF = d_act(how, dy_MD, wo_EFD, g_MF, u_MF, size_E)
  dx_MD = d_rows(how, dg_MF, du_MF, wg_EDF, wu_EDF, size_E)
  pairs = (x_MD, dg_MF), (x_MD, du_MF), (h_MF, dy_MD)
  return dx_MD, *(grouped.d_rhs(a, b, size_E) for a, b in pairs), None


_rows.defvjp(_forward, _backward)


def up(how, x_MD, wg_EDF, wu_EDF, size_E, *, kept: bool):
  """[h_MF] of silu(x wg) * (x wu), and if they are kept [h_MF, g_MF, u_MF] with what it is of."""

  def finish(sums, _, *own):
    g, u = (blocks.columns(y, *own) for y in sums)
    h = g * jax.nn.sigmoid(g) * u
    return (h, g, u) if kept else (h,)

  outs = 3 if kept else 1
  return _by_rows("up", how, [x_MD], [wg_EDF, wu_EDF], size_E, finish, outs, turned=False)


def d_act(how, dy_MD, wo_EFD, g_MF, u_MF, size_E):
  """[dg_MF, du_MF, h_MF]."""

  def finish(sums, read, *own):
    dh, g, u = blocks.columns(sums[0], *own), read(0, *own), read(1, *own)
    sigmoid = jax.nn.sigmoid(g)
    silu = g * sigmoid
    return dh * u * (sigmoid + silu * (1 - sigmoid)), dh * silu, silu * u

  beside = [g_MF, u_MF]
  return _by_rows("d_act", how, [dy_MD], [wo_EFD], size_E, finish, 3, turned=True, beside=beside)


def d_rows(how, dg_MF, du_MF, wg_EDF, wu_EDF, size_E):
  """dg wg.T + du wu.T."""
  finish = lambda sums, _, *own: (blocks.columns(sums[0], *own),)
  lefts, rights = [dg_MF, du_MF], [wg_EDF, wu_EDF]
  return _by_rows("d_rows", how, lefts, rights, size_E, finish, 1, turned=True)[0]


def _by_rows(part, how, lefts, rights, size_E, finish, outs: int, *, turned: bool, beside=()):
  """Arrays [M, O] of what finish(sums, read, start, size) makes of columns of a tile of sums.

  One left with several rights gives a tile of sums for each; several lefts with as many rights one
  tile of the sum of all. Rights are [E, I, O], turned [E, O, I]; read(n, start, size) are those
  columns of array n of `beside`.
  """
  (M, I), E, O = lefts[0].shape, len(size_E), rights[0].shape[1 if turned else 2]
  c, dtype = dict(how)[part], lefts[0].dtype
  walk, steps, added = Walk(c, size_E, M, E, O), I // c.depth, len(lefts) > 1

  def body(block, *refs):
    map_, refs = refs[:4], list(refs[4:])
    arrays = [[refs.pop(0) for _ in group] for group in (lefts, rights, beside)]
    tile = functools.partial(walk.tile, map_)

    def copy(i, k, start):
      expert, first, _, col = tile(i)
      inputs, outputs = pl.ds(lax.rem(k, steps) * c.depth, c.depth), pl.ds(col, c.cols)
      rows = [x.at[pl.ds(first, c.rows), inputs] for x in arrays[0]]
      own = [w.at[(expert, outputs, inputs) if turned else (expert, inputs, outputs)]
             for w in arrays[1]]  # fmt: skip
      if not added:
        return start(*rows, *own)
      for n, pair in enumerate(zip(rows, own, strict=True)):
        pl.when(lax.div(k, steps) == n)(functools.partial(start, *pair))

    def length(i):
      return jnp.where(tile(i)[0] < E, steps * len(lefts), 0)  # rows of no expert: zeros

    def finish_tile(i, done):
      if beside:
        block.fetch(tile(i), arrays[2])
      sums, _, done = block.summed(length(i), done)
      read = block.fetched() if beside else None
      block.write_rows(tile(i), functools.partial(finish, sums, read), refs)
      return done

    block.run(walk.number(map_), length, copy, finish_tile)

  products = [(0, 1)] if added else [(0, n + 1) for n in range(len(rights))]
  operands = [Operand("a", True, dtype)] + [Operand("b", turned, dtype)] * len(products)
  made = [jax.ShapeDtypeStruct((M, O), dtype)] * outs
  name = f"expert_ffn_{part}"
  run = blocks.kernel(body, c, operands, products, made, name, beside=len(beside))
  return run(*walk.map, *lefts, *rights, *beside)
