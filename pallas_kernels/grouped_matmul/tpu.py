"""Grouped matmul in Pallas for TPUs: visits of row tiles, in the order in which groups own them.

The map from visits to tiles and groups (pallas_kernels/tiles.py) is prefetched as scalars, and the
grid is as long as the visits there are: no program finds nothing to do. In the forward pass and in
d_lhs a block of one expert's matrix stays in VMEM for all tiles of its rows, with all inputs at
once where they fit; else sums go through a float32 scratch. A tile that several groups share stays
in VMEM from its first visit to its last, and each visit changes its own rows. In d_rhs the sum of a
group stays in a scratch from its first visit to its last.

Weights of 8 bits are made wide once for all tiles of a group; if the rows have 8 bits as well, the
matrix units multiply these.

No size needs to divide anything: blocks reach beyond arrays, and what they hold there is masked
where it is summed, and dropped where it is written.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import grouped_matmul as op
from pallas_kernels import tiles
from pallas_kernels.grouped_matmul.quantised import Quantised, straight
from pallas_kernels.grouped_matmul.tpu_tiles import Tiles, heuristic, limit, moved


def forward(x_MD, w_EDF, size_E, tile: Tiles | None = None, interpret=False):
  """y[m] = x[m] @ w[expert of m] for the first sum(size_E) rows; the others are zeros."""
  return _rows("forward", x_MD, w_EDF, size_E, tile, interpret)


def d_lhs(g_MF, w_EDF, size_E, tile: Tiles | None = None, interpret=False):
  """dx[m] = g[m] @ w[expert of m].T; the weights stay as they lie."""
  return _rows("d_lhs", g_MF, w_EDF, size_E, tile, interpret)


def quantised(x_MD, w: Quantised, size_E, tile: Tiles | None = None, interpret=False):
  """The forward pass with weights of 8 bits; float32 comes out if the rows have 8 bits too."""
  w = straight(w)
  per_scale = w.values.shape[1] // w.scale.shape[1]
  if w.scale.shape[1] > 1 and per_scale % 128:
    raise NotImplementedError(f"scales of {per_scale} inputs; whole lanes of 128 are done")
  if not isinstance(x_MD, Quantised):
    return _rows("quantised", x_MD, w.values, size_E, tile, interpret, w.scale)
  if x_MD.values.dtype != w.values.dtype:
    raise NotImplementedError(f"rows of {x_MD.values.dtype} times weights of {w.values.dtype}")
  return _rows("quantised", x_MD.values, w.values, size_E, tile, interpret, w.scale, x_MD.scale)


def _rows(part, x_MI, w_E, size_E, tile, interpret, scale_EBO=None, scale_M1=None):
  """Each row times the matrix of its expert, turned in d_lhs: inputs I, outputs O."""
  turned = part == "d_lhs"
  (M, I), E, O = x_MI.shape, len(w_E), w_E.shape[1 if turned else 2]
  narrow, scaled = scale_M1 is not None, scale_EBO is not None
  if not narrow:
    _check(x_MI.dtype)
  shape, itemsize = {"M": M, "E": E, "I": I, "O": O}, x_MI.dtype.itemsize
  tile = tile or heuristic(part, shape, itemsize, w_E.dtype.itemsize if scaled else None)
  b, steps = tile.rows, -(-I // tile.inputs)
  visits = tiles.by_tile(size_E, M, b)
  # rows of nobody are written and not read
  read_V = jnp.minimum(visits.tile_V, jnp.maximum(jnp.sum(size_E) - 1, 0) // b)
  contracted = (((1,), (1 if turned else 0,)), ((), ()))

  def kernel(group_V, tile_V, first_V, last_V, read_V, x_bi, w_1io, *rest):
    scales, (y_bo, *scratch) = rest[: narrow + scaled], rest[narrow + scaled :]
    v, k = pl.program_id(1), pl.program_id(2)
    group, row = group_V[v], tile_V[v] * b

    def write(y):
      """The visit's own rows of a tile."""
      whole = (last_V[v] - first_V[v]) == b

      @pl.when(whole)
      def _():
        y_bo[...] = y.astype(y_bo.dtype)

      @pl.when(~whole)
      def _():
        own = _within(y_bo.shape, 0, first_V[v] - row, last_V[v] - row)
        y_bo[...] = jnp.where(own, y.astype(y_bo.dtype), y_bo[...])

    def product():
      if narrow:
        return _narrow_product(x_bi, w_1io, *scales)
      x, w = x_bi[...], scratch[0][...] if scaled else w_1io[0]
      if I % tile.inputs:
        left = I - k * tile.inputs
        x = jnp.where(_within(x.shape, 1, 0, left), x, 0)
        w = jnp.where(_within(w.shape, 1 if turned else 0, 0, left), w, 0)
      return lax.dot_general(x, w, contracted, preferred_element_type=jnp.float32)

    @pl.when((group == E) & (k == 0))
    def _():
      write(jnp.zeros(y_bo.shape, y_bo.dtype))

    if scaled and not narrow:

      @pl.when((group < E) & ((v == 0) | (group_V[jnp.maximum(v - 1, 0)] != group)))
      def _():
        scratch[0][...] = _widened(w_1io[0], scales[0][0], x_bi.dtype)

    @pl.when(group < E)
    def _():
      if steps == 1:
        write(product())
        return
      sum_bo = scratch[0]

      @pl.when(k == 0)
      def _():
        sum_bo[...] = product()

      @pl.when(k > 0)
      def _():
        sum_bo[...] += product()

      @pl.when(k == steps - 1)
      def _():
        write(sum_bo[...])

  def weights(n, v, k, group_V, *_):
    e = jnp.minimum(group_V[v], E - 1)
    return (e, n, k) if turned else (e, k, n)

  block = (tile.outputs, tile.inputs) if turned else (tile.inputs, tile.outputs)
  given = [
    (x_MI, pl.BlockSpec((b, tile.inputs), lambda n, v, k, g, t, f, l, read_V: (read_V[v], k))),
    (w_E, pl.BlockSpec((1, *block), weights)),
  ]
  scratch = [pltpu.VMEM((b, tile.outputs), jnp.float32)] * (steps > 1)
  if scale_EBO is not None:
    given += [(scale_EBO, pl.BlockSpec((1, scale_EBO.shape[1], tile.outputs), weights))]
    scratch = [] if narrow else [pltpu.VMEM(block, x_MI.dtype)]
  if narrow:
    at = lambda n, v, k, g, t, f, l, read_V: (read_V[v], 0)
    given += [(scale_M1, pl.BlockSpec((b, 1), at))]
  return _call(
    kernel,
    part,
    jax.ShapeDtypeStruct((M, O), jnp.float32 if narrow else x_MI.dtype),
    (-(-O // tile.outputs), visits.count, steps),
    [*visits[:4], read_V],
    given,
    pl.BlockSpec((b, tile.outputs), lambda n, v, k, g, tile_V, *_: (tile_V[v], n)),
    scratch,
    moved(part, tile, shape) * itemsize,
    2 * M * I * O,
    interpret,
  )


def _narrow_product(x_bi, w_1io, scale_1Bo, scale_b1):
  """Sums of 8-bit products, block by block of scales."""
  blocks = scale_1Bo.shape[1]
  many, total = x_bi.shape[1] // blocks, 0
  dtype = jnp.int32 if jnp.issubdtype(x_bi.dtype, jnp.integer) else jnp.float32
  for block in range(blocks):
    at = pl.ds(block * many, many)
    y = jnp.dot(x_bi[:, at], w_1io[0, at], preferred_element_type=dtype)
    total += y.astype(jnp.float32) * scale_1Bo[0, pl.ds(block, 1)]
  return total * scale_b1[...]


def _widened(values_io, scale_Bo, dtype):
  """The weights of one block of columns."""
  (I, O), B = values_io.shape, len(scale_Bo)
  cut = values_io.astype(jnp.float32).reshape(B, I // B, O)
  return (cut * scale_Bo.reshape(B, 1, O)).reshape(I, O).astype(dtype)


def d_rhs(x_MD, g_MF, size_E, tile: Tiles | None = None, interpret=False):
  """dw[e] = sum over the rows of e of x[m] g[m]; zeros for an expert without rows."""
  (M, D), F, E = x_MD.shape, g_MF.shape[1], len(size_E)
  _check(x_MD.dtype)
  shape, itemsize = {"M": M, "E": E, "I": D, "O": F}, x_MD.dtype.itemsize
  tile = tile or heuristic("d_rhs", shape, itemsize)
  b = tile.rows
  visits = tiles.by_tile(size_E, M, b, every_group=True)

  def kernel(group_V, tile_V, first_V, last_V, x_bd, g_bf, dw_1df, sum_df):
    v, last_visit = pl.program_id(2), pl.num_programs(2) - 1
    group, row = group_V[v], tile_V[v] * b
    first, last = first_V[v] - row, last_V[v] - row

    def add(x, g):
      contracted = (((0,), (0,)), ((), ()))
      sum_df[...] += lax.dot_general(x, g, contracted, preferred_element_type=jnp.float32)

    @pl.when((v == 0) | (group_V[jnp.maximum(v - 1, 0)] != group))
    def _():
      sum_df[...] = jnp.zeros(sum_df.shape, jnp.float32)

    @pl.when(last - first == b)
    def _():
      add(x_bd[...], g_bf[...])

    @pl.when((last > first) & (last - first < b))
    def _():
      own = lambda a: jnp.where(_within(a.shape, 0, first, last), a[...], 0)
      add(own(x_bd), own(g_bf))

    @pl.when((v == last_visit) | (group_V[jnp.minimum(v + 1, last_visit)] != group))
    def _():
      dw_1df[0] = sum_df[...].astype(dw_1df.dtype)

  return _call(
    kernel,
    "d_rhs",
    jax.ShapeDtypeStruct((E, D, F), x_MD.dtype),
    (-(-F // tile.outputs), -(-D // tile.inputs), visits.count),
    visits[:4],
    [
      (x_MD, pl.BlockSpec((b, tile.inputs), lambda n, d, v, g, tile_V, *_: (tile_V[v], d))),
      (g_MF, pl.BlockSpec((b, tile.outputs), lambda n, d, v, g, tile_V, *_: (tile_V[v], n))),
    ],
    pl.BlockSpec((1, tile.inputs, tile.outputs), lambda n, d, v, group_V, *_: (group_V[v], d, n)),
    [pltpu.VMEM((tile.inputs, tile.outputs), jnp.float32)],
    moved("d_rhs", tile, shape) * itemsize,
    2 * M * D * F,
    interpret,
  )


def _call(
  kernel, part, out_shape, grid, scalars, given, out_spec, scratch, traffic, flops, interpret
):
  """A pallas_call in which columns may go to any core, and visits follow one another."""
  arrays, in_specs = zip(*given, strict=True)
  orders = ("parallel", "arbitrary", "arbitrary")
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=grid,
      in_specs=list(in_specs),
      out_specs=out_spec,
      scratch_shapes=scratch,
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=orders, vmem_limit_bytes=limit()),
    cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=traffic, transcendentals=0),
    interpret=interpret,
    name=f"grouped_matmul_{part}",
  )(*scalars, *arrays)


def _within(shape, axis: int, first, last):
  """Which entries have an index of first to last on an axis."""
  index = lax.broadcasted_iota(jnp.int32, shape, axis)
  return (index >= first) & (index < last)


def _check(dtype) -> None:
  if dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError(f"rows are {dtype}; bfloat16 and float32 are done")


grouped_matmul = functools.partial(op.grouped_matmul, implementation="tpu")
