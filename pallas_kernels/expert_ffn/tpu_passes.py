"""The two kinds of kernel that the passes of an expert FFN on TPUs are: by rows, and by group.

As in grouped_matmul/tpu.py: visits of row tiles follow one another, by the map of tiles.py, and
what stays the same from visit to visit stays in VMEM. What is new is that rows may be fetched one
by one from an array of tokens, that several matrices may meet the same rows, and that the results
are finished together before they leave.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tiles, tpu_rows
from pallas_kernels.expert_ffn.tpu_tiles import moved
from pallas_kernels.grouped_matmul.tpu_tiles import Tiles, limit
from pallas_kernels.tpu_rows import Fetched, Fetching


def by_rows(
  name: str,
  rows: Fetched | jax.Array | list,
  weights: list,
  finish: typing.Callable,
  *,
  size_E,
  M: int,
  tile: Tiles,
  outs: list,
  turned: bool = False,
  beside: tuple = (),
  weight_M=None,
  per_row: bool = False,
  interpret=False,
) -> list:
  """Rows times the matrices of their expert, finished together; nothing for rows of nobody.

  Either some matrices meet the same rows, which may be fetched, or as many arrays of rows meet one
  matrix each and the products are added up. finish(products, beside, weight_b1) gives, from float32
  products [b, o] and tiles of the arrays `beside`, what is written in the types `outs` (or, where
  that is "words", as words of the weights' type), and what is summed over o if `per_row`, which is
  then the last result, [M].
  """
  fetched = isinstance(rows, Fetched)
  rows = [rows] if isinstance(rows, jax.Array) else rows
  E, I, O = (weights[0].shape[at] for at in ((0, 2, 1) if turned else (0, 1, 2)))
  b, inputs, outputs = tile
  steps, blocks, tiles_ = -(-I // inputs), -(-O // outputs), -(-M // b)
  visits = tiles.by_tile(size_E, M, b)
  own = jnp.sum((visits.group_V < E) & (jnp.arange(len(visits.group_V)) < visits.count))
  contracted = (((1,), (1 if turned else 0,)), ((), ()))
  packed = tpu_rows.packs(weights[0].dtype, O)
  fetching = [Fetching(rows, b, I, 1)] if isinstance(rows, Fetched) else []
  weighed = weight_M is not None

  def kernel(group_V, first_V, last_V, tile_V, *refs):
    """Scalars, then what is fetched or read, then what is written, then scratch."""
    take = _taker(refs)
    tokens = take(3) if fetched else ()
    x_s, w_s, beside_s = take(0 if fetched else len(rows)), take(len(weights)), take(len(beside))
    weight_s, y_s, per_row_s, scratch = take(weighed), take(len(outs)), take(per_row), take(None)
    n, v, k = (pl.program_id(axis) for axis in range(3))
    last_visit = pl.num_programs(1) - 1
    group, row = group_V[v], tile_V[v] * b
    first, last = first_V[v] - row, last_V[v] - row

    def product():
      x_all = [scratch[2][...]] if fetched else [x[...] for x in x_s]
      w_all = [w[0] for w in w_s]
      if I % inputs and not fetched:
        left = I - k * inputs
        x_all = [jnp.where(within(x.shape, 1, 0, left), x, 0) for x in x_all]
        w_all = [jnp.where(within(w.shape, 1 if turned else 0, 0, left), w, 0) for w in w_all]
      dot = lambda x, w: lax.dot_general(x, w, contracted, preferred_element_type=jnp.float32)
      if len(x_all) == 1:
        return [dot(x_all[0], w) for w in w_all]
      return [functools.reduce(jnp.add, map(dot, x_all, w_all))]

    def write(products):
      weight_b1 = tpu_rows.column(weight_s[0][0]) if weighed else None
      results, summed = finish(products, [a[...] for a in beside_s], weight_b1)
      results = [
        _words(y, packed, weights[0]) if o == "words" else y
        for y, o in zip(results, outs, strict=True)
      ]
      whole = last - first == b

      @pl.when(whole)
      def _():
        for y_bo, y in zip(y_s, results, strict=True):
          y_bo[...] = y.astype(y_bo.dtype)

      @pl.when(~whole)
      def _():
        for y_bo, y in zip(y_s, results, strict=True):
          mine = within(y_bo.shape, 0, first, last)
          y_bo[...] = jnp.where(mine, y.astype(y_bo.dtype), y_bo[...])

      if per_row:
        if O % outputs:
          summed = jnp.where(within(summed.shape, 1, 0, O - n * outputs), summed, 0)
        sum_1b = tpu_rows.row(jnp.sum(summed, axis=1, keepdims=True))
        to = per_row_s[0]
        to[0, 0] = jnp.where(within(sum_1b.shape, 1, first, last), sum_1b, to[0, 0])

    @pl.when(group < E)
    def _():
      if fetched:
        fetching[0].run(v, last_visit, 0, tile_V, *tokens, *scratch)
      if steps == 1:
        write(product())
        return

      @pl.when(k == 0)
      def _():
        scratch[0][...] = product()[0]

      @pl.when(k > 0)
      def _():
        scratch[0][...] += product()[0]

      @pl.when(k == steps - 1)
      def _():
        write([scratch[0][...]])

  def matrix(n, v, k, group_V, *_):
    e = jnp.minimum(group_V[v], E - 1)
    return (e, n, k) if turned else (e, k, n)

  columns = lambda n, v, k, *scalars: (scalars[-1][v], n)
  lanes = pl.BlockSpec((1, 1, b), lambda n, v, k, *scalars: (scalars[-1][v], 0, 0))
  block = (1, outputs, inputs) if turned else (1, inputs, outputs)
  given = fetching[0].operands() if fetched else [
    (x_MI, pl.BlockSpec((b, inputs), lambda n, v, k, *scalars: (scalars[-1][v], k)))
    for x_MI in rows
  ]  # fmt: skip
  given += [(w, pl.BlockSpec(block, matrix)) for w in weights]
  given += [(a_MO, pl.BlockSpec((b, outputs), columns)) for a_MO in beside]
  if weighed:
    given += [(tpu_rows.by_tile(weight_M.astype(jnp.float32), tiles_, b), lanes)]
  results = []
  for out in outs:
    share = 2 if out == "words" and packed else 1
    dtype = (jnp.uint32 if packed else jnp.float32) if out == "words" else out
    shape = jax.ShapeDtypeStruct((M, O // share), dtype)
    results += [(shape, pl.BlockSpec((b, outputs // share), columns))]
  if per_row:
    shape = jax.ShapeDtypeStruct((blocks, tiles_, 1, b), jnp.float32)
    at = lambda n, v, k, *scalars: (n, scalars[-1][v], 0, 0)
    results += [(shape, pl.BlockSpec((1, 1, 1, b), at))]
  found = _call(
    kernel,
    name,
    (blocks, jnp.maximum(own, 1), steps),
    [visits.group_V, visits.first_V, visits.last_V, visits.tile_V],
    given,
    results,
    fetching[0].scratch() if fetched else [pltpu.VMEM((b, outputs), jnp.float32)] * (steps > 1),
    (tile, {"M": M, "E": E, "I": I, "O": O}, weights[0].dtype.itemsize),
    2 * M * I * O * len(weights),
    interpret,
  )
  return [*found[:-1], found[-1].sum(0).ravel()[:M]] if per_row else found


def _words(y_bo, packed: bool, like):
  return tpu_rows.pack(y_bo, like.dtype) if packed else y_bo.astype(like.dtype)


def by_group(name: str, x, g_s: list, *, size_E, tile: Tiles, interpret=False) -> list:
  """dw[e] = sum over the rows of e of x[m] g[m], for each g; zeros for an expert without rows.

  Either x, or g where there is one, may be fetched.
  """
  fetched = next((a for a in (x, *g_s) if isinstance(a, Fetched)), None)
  wide = lambda a: a.D if isinstance(a, Fetched) else a.shape[1]
  I, O, E = wide(x), wide(g_s[0]), len(size_E)
  M = len(fetched.token_M) if fetched else len(x)
  b, inputs, outputs = tile
  visits = tiles.by_tile(size_E, M, b, every_group=True)
  of_x = fetched is x
  fetching = [Fetching(fetched, b, inputs if of_x else outputs, 2)] if fetched else []
  there = [a for a in (x, *g_s) if not isinstance(a, Fetched)]
  dtype = there[0].dtype

  def kernel(group_V, first_V, last_V, tile_V, *refs):
    take = _taker(refs)
    tokens, given, dw_s = take(3 if fetched else 0), take(len(there)), take(len(g_s))
    sum_s, scratch = take(len(g_s)), take(None)
    v, last_visit = pl.program_id(2), pl.num_programs(2) - 1
    group, row = group_V[v], tile_V[v] * b
    first, last = first_V[v] - row, last_V[v] - row
    if fetched:
      block = pl.program_id(1 if of_x else 0)
      fetching[0].run(v, last_visit, block, tile_V, *tokens, *scratch)
      given.insert(0 if of_x else 1, scratch[2])
    x_bi, *g_all = given

    def add(x, g_all):
      contracted = (((0,), (0,)), ((), ()))
      for total, g in zip(sum_s, g_all, strict=True):
        total[...] += lax.dot_general(x, g, contracted, preferred_element_type=jnp.float32)

    @pl.when((v == 0) | (group_V[jnp.maximum(v - 1, 0)] != group))
    def _():
      for total in sum_s:
        total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(last - first == b)
    def _():
      add(x_bi[...], [g[...] for g in g_all])

    @pl.when((last > first) & (last - first < b))
    def _():
      mine = lambda a: jnp.where(within(a.shape, 0, first, last), a[...], 0)
      add(mine(x_bi), [mine(g) for g in g_all])

    @pl.when((v == last_visit) | (group_V[jnp.minimum(v + 1, last_visit)] != group))
    def _():
      for dw_1io, total in zip(dw_s, sum_s, strict=True):
        dw_1io[0] = total[...].astype(dw_1io.dtype)

  at_x = pl.BlockSpec((b, inputs), lambda n, d, v, *scalars: (scalars[-1][v], d))
  at_g = pl.BlockSpec((b, outputs), lambda n, d, v, *scalars: (scalars[-1][v], n))
  specs = [at_x] * (not of_x) + [at_g] * (len(there) - (not of_x))
  result = jax.ShapeDtypeStruct((E, I, O), dtype)
  to = pl.BlockSpec((1, inputs, outputs), lambda n, d, v, group_V, *_: (group_V[v], d, n))
  sums = [pltpu.VMEM((inputs, outputs), jnp.float32)] * len(g_s)
  return _call(
    kernel,
    name,
    (-(-O // outputs), -(-I // inputs), visits.count),
    [visits.group_V, visits.first_V, visits.last_V, visits.tile_V],
    [*(fetching[0].operands() if fetching else []), *zip(there, specs, strict=True)],
    [(result, to)] * len(g_s),
    [*sums, *(fetching[0].scratch() if fetching else [])],
    (tile, {"M": M, "E": E, "I": I, "O": O}, dtype.itemsize),
    2 * M * I * O * len(g_s),
    interpret,
  )


def _taker(refs):
  """take(n) gives the next n of them, take(None) all that are left."""
  left = iter(refs)
  return lambda n: [*left] if n is None else [next(left) for _ in range(n)]


def _call(kernel, name, grid, scalars, given, results, scratch, cost, flops, interpret):
  """A pallas_call in which columns may go to any core, and visits follow one another."""
  arrays, in_specs = zip(*given, strict=True)
  tile, shape, itemsize = cost
  traffic = moved(name, tile, shape) * itemsize
  return pl.pallas_call(
    kernel,
    out_shape=[shape for shape, _ in results],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=grid,
      in_specs=list(in_specs),
      out_specs=[spec for _, spec in results],
      scratch_shapes=scratch,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=limit()
    ),
    cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=int(traffic), transcendentals=0),
    interpret=interpret,
    name=f"expert_ffn_{name}",
  )(*scalars, *arrays)


def within(shape, axis: int, first, last):
  """Which entries have an index of first to last on an axis."""
  index = lax.broadcasted_iota(jnp.int32, shape, axis)
  return (index >= first) & (index < last)
