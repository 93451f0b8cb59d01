"""Grouped matmul in Pallas Mosaic GPU, for Hopper: persistent blocks of three warpgroups.

A block stays on each multiprocessor and takes its share of the tiles. One
warpgroup only copies: it keeps `stages` slices of both operands on their way into shared memory,
over the border of tiles, so that the next tile's are there while this one is written. Two multiply
(wgmma), each its half of the tile, and write it through shared memory. Barriers say which slices
have arrived (full) and which may be overwritten (empty).

Tiles begin where the rows of their expert begin (tiles.by_group). The copy out of a tile that is
not full is cut into powers of two, since the shape of a TMA copy is fixed when it is compiled.
"""

import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import choose, target, tiles

MULTIPLIERS = 2  # warpgroups; one more copies
HOPPER = ("NVIDIA H", "NVIDIA GH")  # H100, H200, GH200, ...
SHARED = 227 * 1024  # bytes of shared memory that a block may have
WRITTEN = 64  # columns written at a time: 128 bytes, the widest swizzle


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

  def shared(self) -> int:
    """Bytes of shared memory in 16-bit numbers: operands, results on their way out, barriers."""
    written = MULTIPLIERS * self.slots() * self.half()[0] * WRITTEN
    return 2 * (self.stages * self.depth * (self.rows + self.cols) + written) + 1024

  def slots(self) -> int:
    """Results on their way out at once: one waits while the other is filled, if there is space."""
    operands = self.stages * self.depth * (self.rows + self.cols)
    return 2 if 2 * (operands + 2 * MULTIPLIERS * self.half()[0] * WRITTEN) + 1024 <= SHARED else 1


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
  _check(x_MI, w, {"inputs": (I, c.depth), "columns": (O, c.cols)})
  columns, steps = O // c.cols, I // c.depth
  band = max(b for b in range(1, c.band + 1) if columns % b == 0)
  expert_T, first_T, last_T = tiles.by_group(size_E, M, c.rows)
  count_1 = jnp.sum(first_T < last_T, dtype=jnp.int32)[None]  # those with rows come first

  def body(expert_T, first_T, last_T, count_1, x_MI, w, y_MO, **shared):
    count = count_1[0]

    def tile(i):
      outer, inner = lax.div(i, count * band), lax.rem(i, count * band)
      t = lax.div(inner, band)
      expert, first = expert_T[t], first_T[t]
      start = (outer * band + lax.rem(inner, band)) * c.cols
      return expert, first, last_T[t] - first, start

    def length(i):
      return jnp.where(tile(i)[0] < E, steps, 0)  # rows of no expert: zeros

    def copies(i, k):
      expert, first, _, start = tile(i)
      inputs, outputs = pl.ds(k * c.depth, c.depth), pl.ds(start, c.cols)
      own = w.at[expert, outputs, inputs] if across else w.at[expert, inputs, outputs]
      return x_MI.at[pl.ds(first, c.rows), inputs], own

    def write(i, piece, row, col, buffer):
      _, first, size, start = tile(i)
      left = jnp.clip(size - row, 0, piece.shape[0])
      _write(piece, left, y_MO, first + row, start + col, buffer)

    turned = (False, across)
    _persistent(c, count * columns, length, copies, None, write, turned, **shared)

  w_shape = (c.cols, c.depth) if across else (c.depth, c.cols)
  kernel = _kernel(body, c, (c.rows, c.depth), w_shape, (M, O), x_MI.dtype, part)
  return kernel(expert_T, first_T, last_T, count_1, x_MI, w)


def d_rhs(x_MD, g_MF, size_E, *, config: Config | None = None):
  """dw[e] = sum over the rows m of e of x[m] g[m]; zeros for an expert without rows."""
  (M, D), F, E = x_MD.shape, g_MF.shape[1], len(size_E)
  c = config or _tuned("d_rhs", {"M": M, "D": D, "F": F, "E": E}, x_MD.dtype, F)
  _check(x_MD, g_MF, {"inputs": (D, c.rows), "columns": (F, c.cols)})
  blocks_d, blocks_f = D // c.rows, F // c.cols
  last_E = jnp.minimum(jnp.cumsum(size_E, dtype=jnp.int32), M)
  first_E = jnp.append(0, last_E[:-1]).astype(jnp.int32)

  def body(first_E, last_E, x_MD, g_MF, dw_EDF, **shared):
    def tile(i):
      e, block = lax.div(i, blocks_d * blocks_f), lax.rem(i, blocks_d * blocks_f)
      return e, lax.div(block, blocks_f) * c.rows, lax.rem(block, blocks_f) * c.cols

    def length(i):
      e = tile(i)[0]
      return lax.div(last_E[e] - first_E[e] + c.depth - 1, c.depth)

    def copies(i, k):
      e, d, f = tile(i)
      rows = pl.ds(first_E[e] + k * c.depth, c.depth)
      return x_MD.at[rows, pl.ds(d, c.rows)], g_MF.at[rows, pl.ds(f, c.cols)]

    def left(i, k):
      e = tile(i)[0]
      return last_E[e] - first_E[e] - k * c.depth

    def write(i, piece, row, col, buffer):
      e, d, f = tile(i)
      _write(piece, piece.shape[0], dw_EDF.at[e], d + row, f + col, buffer)

    number = E * blocks_d * blocks_f
    _persistent(c, number, length, copies, left, write, (True, False), **shared)

  shapes = (c.depth, c.rows), (c.depth, c.cols)
  kernel = _kernel(body, c, *shapes, (E, D, F), x_MD.dtype, "d_rhs")
  return kernel(first_E, last_E, x_MD, g_MF)


def _persistent(
  c, number, length, copies, left, write, turned, *, a_smem, b_smem, y_smem, full, empty
):
  """Tiles i, of `number`, this multiprocessor's: each the sum of length(i) products.

  copies(i, k) are the two slices of the arrays, `turned` which of them are multiplied transposed;
  left(i, k) how many rows of a slice are the expert's own, if others are to be masked.
  """
  sm, cores, me = lax.axis_index("sm"), lax.axis_size("sm"), lax.axis_index("wg")
  mine = lax.div(number - sm + cores - 1, cores)

  @pl.when(me == MULTIPLIERS)
  def _():
    plgpu.set_max_registers(40, action="decrease")

    def per_tile(j, done):
      i = sm + j * cores

      def copy(k, done):
        slot = lax.rem(done, c.stages)

        @pl.when(done >= c.stages)
        def _():
          plgpu.barrier_wait(empty.at[slot])

        for source, smem in zip(copies(i, k), (a_smem, b_smem), strict=True):
          plgpu.copy_gmem_to_smem(source, smem.at[slot], full.at[slot])
        return done + 1

      return lax.fori_loop(0, length(i), copy, done)

    done = lax.fori_loop(0, mine, per_tile, jnp.int32(0))
    last = jnp.minimum(done, c.stages)

    @pl.loop(0, last)
    def _(n):  # all copies have been read
      plgpu.barrier_wait(empty.at[lax.rem(done - last + n, c.stages)])

  @pl.when(me < MULTIPLIERS)
  def _():
    plgpu.set_max_registers(232, action="increase")
    rows, cols = c.half()
    row, col = (me * rows, 0) if rows < c.rows else (0, me * cols)

    def per_tile(j, done):
      i = sm + j * cores

      def multiply(acc):
        def step(k, done):
          slot = lax.rem(done, c.stages)
          plgpu.barrier_wait(full.at[slot])
          a, b = a_smem.at[slot], b_smem.at[slot]
          if left is not None:
            _mask(left(i, k), c, a, b)
          a = a.at[:, pl.ds(row, rows)] if turned[0] else a.at[pl.ds(row, rows)]
          b = b.at[pl.ds(col, cols)] if turned[1] else b.at[:, pl.ds(col, cols)]
          a, b = (
            plgpu.transpose_ref(r, (1, 0)) if t else r for r, t in zip((a, b), turned, strict=True)
          )
          plgpu.wgmma(acc, a, b)
          plgpu.wgmma_wait(1)  # the one before this is done: its slices may go

          @pl.when(k > 0)
          def _():
            plgpu.barrier_arrive(empty.at[lax.rem(done - 1, c.stages)])

          return done + 1

        lax.fori_loop(0, length(i), step, done)
        return acc[...]

      y = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((rows, cols)))
      done += length(i)

      @pl.when(length(i) > 0)
      def _():
        plgpu.barrier_arrive(empty.at[lax.rem(done - 1, c.stages)])

      y = y.astype(y_smem.dtype)
      for n in range(cols // WRITTEN):
        slots = y_smem.shape[1]
        buffer = y_smem.at[me, n % slots]
        plgpu.wait_smem_to_gmem(slots - 1, wait_read_only=True)
        write(i, y[:, n * WRITTEN : (n + 1) * WRITTEN], row, col + n * WRITTEN, buffer)
      return done

    lax.fori_loop(0, mine, per_tile, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0)


def _write(piece, left, y, row, col, buffer):
  """The first `left` rows of a piece into y at (row, col), through shared memory."""
  buffer[...] = piece
  plgpu.commit_smem()
  rows, done = piece.shape[0], 0
  while rows:
    if isinstance(left, int):
      plgpu.copy_smem_to_gmem(buffer, y.at[pl.ds(row, rows), pl.ds(col, WRITTEN)])
      return

    @pl.when((left & rows) != 0)
    def _(rows=rows, done=done):
      to = y.at[pl.ds(row + done, rows), pl.ds(col, WRITTEN)]
      plgpu.copy_smem_to_gmem(buffer.at[pl.ds(done, rows)], to, commit_group=False)

    done += left & rows
    rows //= 2
  plgpu.commit_smem_to_gmem_group()


def _mask(left, c, *operands):
  """Zeros in the rows of other experts, in shared memory."""

  @pl.when(left < c.depth)
  def _():
    for ref in operands:
      row = plgpu.broadcasted_iota(jnp.int32, ref.shape, 0, layout=plgpu.Layout.WGMMA)
      ref[...] = jnp.where(row < left, ref[...], jnp.zeros((), ref.dtype))
    plgpu.commit_smem()


def _kernel(body, c, a_shape, b_shape, out_shape, dtype, part):
  """The launch: a block on each multiprocessor, and what its warpgroups share."""
  swizzled = lambda rows: (plgpu.TilingTransform((rows, 64)), plgpu.SwizzleTransform(128))
  operand = lambda shape: plgpu.SMEM((c.stages, *shape), dtype, transforms=swizzled(8))
  written = (MULTIPLIERS, c.slots(), c.half()[0], WRITTEN)
  return plgpu.kernel(
    body,
    out_type=jax.ShapeDtypeStruct(out_shape, dtype),
    scratch_types={
      "a_smem": operand(a_shape),
      "b_smem": operand(b_shape),
      "y_smem": plgpu.SMEM(written, dtype, transforms=swizzled(1)),
      "full": plgpu.Barrier(num_arrivals=2, num_barriers=c.stages),
      "empty": plgpu.Barrier(num_arrivals=MULTIPLIERS, num_barriers=c.stages),
    },
    grid=(target.cores(),),
    grid_names=("sm",),
    num_threads=MULTIPLIERS + 1,
    thread_name="wg",
    kernel_name=f"grouped_matmul_{part}",
  )


def _tuned(part: str, shape: dict, dtype, out: int) -> Config:
  """What was fastest at a shape like this one, if it was measured and its columns divide these."""
  found = choose.config("grouped_matmul", part, shape, dtype, "mosaic_gpu")
  if found and out % Config(*found).cols == 0:
    return Config(*found)
  return heuristic(part, shape["M"] // shape["E"], out)


def _check(a, b, sizes) -> None:
  """Refuses what the kernels do not do."""
  if target.platform() == "gpu" and not target.kind().startswith(HOPPER):
    raise NotImplementedError(f"mosaic_gpu: written for Hopper, this is {target.kind()}")
  if a.dtype != b.dtype or a.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"mosaic_gpu: bfloat16 or float16 only, not {a.dtype} and {b.dtype}")
  for what, (size, step) in sizes.items():
    if size % step:
      raise NotImplementedError(f"mosaic_gpu: {size} {what} are no multiple of {step}")
