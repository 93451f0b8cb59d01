"""Grouped matmul in Pallas Triton, for GPUs: one program per live tile and block of columns.

The grid has one axis: as many tiles as any sizes could need, and the blocks of columns, in bands.
Within a band, neighbouring programs share the rows of a tile or the matrix of an expert, which stay
in the L2 cache. Tiles begin where the rows of their expert begin, so that no tile has two experts;
the last tile of an expert is masked. Rows beyond the last group are tiles of their own, which write
zeros and read nothing. In d_rhs a program owns a block of one expert's matrix and walks its rows.

Quantised weights are widened after they were loaded; if the rows are quantised too, the tensor
cores multiply the few bits themselves. Scales of blocks of inputs join the sums block by block.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import choose, tiles
from pallas_kernels import triton_blocks as blocks
from pallas_kernels.grouped_matmul.quantised import Quantised, straight
from pallas_kernels.triton_blocks import Config

NARROW = ("int8", "float8_e4m3fn", "float8_e5m2")


def heuristic(pass_: str, mean: int, itemsize: int) -> Config:
  """What to try first for so many rows per expert.

  >>> heuristic("forward", 512, 2), heuristic("forward", 8, 2).rows
  (Config(rows=128, cols=256, depth=64, warps=8, stages=3, band=8), 16)
  """
  depth = 128 // itemsize  # a cache line of each row
  if pass_ == "d_rhs":
    return Config(128, 128, depth if mean >= 64 else 32, 8, 3)
  if mean >= 96:
    return Config(128, 256, depth, 8, 3) if itemsize < 4 else Config(128, 128, depth, 8, 3)
  rows = 64 if mean >= 32 else 32 if mean >= 16 else 16
  return Config(rows, 128, depth, 4, 4)


def candidates(pass_: str, mean: int, itemsize: int) -> list[Config]:
  """What a tuner tries, the heuristic first.

  >>> len(candidates("d_rhs", 512, 2))
  6
  """
  first, depth = heuristic(pass_, mean, itemsize), 128 // itemsize
  if pass_ == "d_rhs":
    more = [(128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (128, 128, 32, 4, 4), (64, 256, 64, 4, 3)]
    more += [(256, 128, 64, 8, 3)]
  elif mean >= 96:
    more = [(128, 256, depth, 8, 4), (128, 128, depth, 4, 4), (128, 128, depth, 8, 3)]
    more += [(256, 128, depth, 8, 3), (64, 256, depth, 4, 3), (128, 256, depth, 8, 3, 4)]
  else:
    more = [(16, 256, depth, 4, 4), (32, 128, depth, 4, 4), (64, 128, depth, 4, 4)]
    more += [(16, 128, 2 * depth, 4, 3), (64, 256, depth, 4, 3)]
  return list(dict.fromkeys([first, *(Config(*c) for c in more)]))


def forward(x_MD, w_EDF, size_E, *, config=None, interpret=False):
  """y[m] = x[m] @ w[expert of m].

  >>> x_MD, w_EDF = jnp.ones((3, 1)), jnp.array([[[2.]], [[5.]]])
  >>> forward(x_MD, w_EDF, jnp.array([1, 1]), interpret=True).ravel().tolist()
  [2.0, 5.0, 0.0]
  """
  return _rows("forward", x_MD, w_EDF, size_E, (), config, interpret)


def d_lhs(g_MF, w_EDF, size_E, *, config=None, interpret=False):
  """dx[m] = g[m] @ w[expert of m].T."""
  return _rows("d_lhs", g_MF, w_EDF, size_E, (), config, interpret)


def quantised(x_MD, w: Quantised, size_E, *, config=None, interpret=False):
  """forward of quantised weights, and of rows of the same few bits or of floats."""
  w = straight(w)
  scales = [w.scale]
  if isinstance(x_MD, Quantised):
    x_MD, scales = x_MD.values, [w.scale, x_MD.scale]
  return _rows("forward", x_MD, w.values, size_E, scales, config, interpret)


def _rows(pass_, x_MI, w, size_E, scales, config, interpret):
  """Each row times the matrix of its expert, turned in d_lhs: inputs I, outputs O.

  `scales` are those of the weights, [E, blocks of I, O], and then of the rows, [M, 1], if any.
  """
  across, narrow_rows = pass_ == "d_lhs", len(scales) == 2
  (M, I), E, O = x_MI.shape, w.shape[0], w.shape[1 if across else 2]
  out_dtype = _checked(x_MI, w, scales)
  shape = {"M": M, "D": O if across else I, "F": I if across else O, "E": E}
  c = config or _tuned(pass_, shape, x_MI.dtype)
  block = I // scales[0].shape[1] if scales else I  # of inputs that have one scale
  depth = min(c.depth, pl.next_power_of_2(block))
  if block < I and block % depth:
    raise NotImplementedError(f"triton: blocks of {block} inputs are no multiples of {depth}")
  columns = pl.cdiv(O, c.cols)
  band = min(c.band, columns)
  expert_T, first_T, last_T = tiles.by_group(size_E, M, c.rows)
  number = len(expert_T)

  def kernel(expert_T, first_T, last_T, x_MI, w, *rest):
    *scales, y_MO = rest
    outer, inner = blocks.divided(pl.program_id(0), number * band)
    t, n = blocks.divided(inner, band)
    n += outer * band
    expert, first, last = expert_T[t], first_T[t], last_T[t]
    rows, cols = pl.ds(first, c.rows), pl.ds(n * c.cols, c.cols)
    own_r1 = blocks.below(first, c.rows, last)[:, None]
    own_c = blocks.inside(n * c.cols, c.cols, O)

    def step(k, acc_rc):
      inputs, own_d = pl.ds(k * depth, depth), blocks.inside(k * depth, depth, I)
      x_rd = blocks.load(x_MI.at[rows, inputs], own_r1, own_d)
      if across:
        return acc_rc + blocks.dot(x_rd, blocks.load(w.at[expert, cols, inputs], own_c, own_d).T)
      w_dc = blocks.load(w.at[expert, inputs, cols], own_d, own_c)
      y_rc = blocks.dot(x_rd, w_dc if narrow_rows else w_dc.astype(x_rd.dtype))
      if not scales:
        return acc_rc + y_rc
      scale_1c = blocks.load(scales[0].at[expert, pl.ds(k * depth // block, 1), cols], None, own_c)
      return acc_rc + y_rc.astype(jnp.float32) * scale_1c

    @pl.when((first < last) & (n < columns))
    def _():
      steps = (expert < E).astype(jnp.int32) * pl.cdiv(I, depth)  # rows of no expert: zeros
      acc_rc = lax.fori_loop(0, steps, step, jnp.zeros((c.rows, c.cols), jnp.float32))
      if narrow_rows:
        acc_rc *= blocks.load(scales[1].at[rows, pl.ds(0, 1)], own_r1, None)
      plgpu.store(
        y_MO.at[rows, cols], acc_rc.astype(out_dtype), mask=blocks.mask(own_r1, own_c, acc_rc.shape)
      )

  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((M, O), out_dtype),
    grid=(number * band * pl.cdiv(columns, band),),
    compiler_params=plgpu.CompilerParams(num_warps=c.warps, num_stages=c.stages),
    interpret=interpret,
    name=f"grouped_matmul_{pass_}",
  )(expert_T, first_T, last_T, x_MI, w, *scales)


def d_rhs(x_MD, g_MF, size_E, *, config=None, interpret=False):
  """dw[e] = sum over the rows m of e of x[m] g[m]; zeros for an expert without rows."""
  (M, D), F, E = x_MD.shape, g_MF.shape[1], len(size_E)
  dtype = _checked(x_MD, g_MF)
  c = config or _tuned("d_rhs", {"M": M, "D": D, "F": F, "E": E}, x_MD.dtype)
  blocks_d, blocks_f = pl.cdiv(D, c.rows), pl.cdiv(F, c.cols)
  last_E = jnp.minimum(jnp.cumsum(size_E, dtype=jnp.int32), M)
  first_E = jnp.append(0, last_E[:-1]).astype(jnp.int32)

  def kernel(first_E, last_E, x_MD, g_MF, dw_EDF):
    e, block = blocks.divided(pl.program_id(0), blocks_d * blocks_f)
    i, j = blocks.divided(block, blocks_f)
    first, last = first_E[e], last_E[e]
    inputs, outputs = pl.ds(i * c.rows, c.rows), pl.ds(j * c.cols, c.cols)
    own_d, own_f = blocks.inside(i * c.rows, c.rows, D), blocks.inside(j * c.cols, c.cols, F)

    def step(k, acc_df):
      start = first + k * c.depth
      rows, own_r1 = pl.ds(start, c.depth), blocks.below(start, c.depth, last)[:, None]
      x_rd = blocks.load(x_MD.at[rows, inputs], own_r1, own_d)
      return acc_df + blocks.dot(x_rd.T, blocks.load(g_MF.at[rows, outputs], own_r1, own_f))

    steps = lax.div(last - first + c.depth - 1, c.depth)
    acc_df = lax.fori_loop(0, steps, step, jnp.zeros((c.rows, c.cols), jnp.float32))
    mask = None if own_d is own_f is None else blocks.mask(own_d, own_f, acc_df.shape)
    plgpu.store(dw_EDF.at[e, inputs, outputs], acc_df.astype(dtype), mask=mask)

  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((E, D, F), dtype),
    grid=(E * blocks_d * blocks_f,),
    compiler_params=plgpu.CompilerParams(num_warps=c.warps, num_stages=c.stages),
    interpret=interpret,
    name="grouped_matmul_d_rhs",
  )(first_E, last_E, x_MD, g_MF)


def _tuned(part: str, shape: dict, dtype) -> Config:
  """What was fastest at a shape like this one, if it was measured."""
  tried = candidates(part, shape["M"] // shape["E"], dtype.itemsize)
  found = choose.config("grouped_matmul", part, shape, dtype, "triton", tried)
  return Config(*found) if found else tried[0]


def _checked(x, w, scales=()):
  """The dtype of the result, if these dtypes and sizes are ones that the kernels do."""
  narrow = w.dtype.name in NARROW
  known = x.dtype == w.dtype if len(scales) != 1 else narrow
  if not known or narrow != bool(scales) or len(scales) < 2 and x.dtype.name not in blocks.DTYPES:
    raise NotImplementedError(f"triton: no kernel for {x.dtype} rows with {w.dtype} weights")
  for a in (x, w):
    if a.dtype.itemsize == 1 and 2**31 <= a.size <= 2**32:
      # Pallas counts in 32 bits up to 4 GiB, where the number of a byte has 33
      raise NotImplementedError(f"triton: {a.size} numbers of one byte are too many to address")
  return jnp.dtype(jnp.float32) if len(scales) == 2 else x.dtype
