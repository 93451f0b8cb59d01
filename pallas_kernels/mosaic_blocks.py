"""What kernels of matmuls in Pallas Mosaic GPU are made of: Hopper's warpgroups, each with a role.

A block stays on each multiprocessor and takes its share of the tiles. One warpgroup only copies
(TMA): it keeps `stages` slices of all operands on their way into shared memory, over the border of
tiles, so that the next tile's are there while this one is written. Two multiply (wgmma), each its
half of the tile, and write it through shared memory. Barriers say which slices have arrived (full)
and which may be overwritten (empty).

The copy out of a tile that is not full is cut into powers of two, since the shape of a TMA copy is
fixed when it is compiled.
"""

import dataclasses
import typing

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import target
from pallas_kernels.mosaic_tiles import MULTIPLIERS, WRITTEN, Config, Operand, swizzled

HOPPER = ("NVIDIA H", "NVIDIA GH")  # H100, H200, GH200, ...
WIDE = (jnp.bfloat16, jnp.float16)


def kernel(body, c: Config, operands, products, outs, name: str, turned=False, beside=0):
  """The launch of body(block, *arrays, *outs): a block on each multiprocessor.

  `operands` are copied slice by slice; of each of the `products`, pairs of them, a tile is summed.
  `outs` are shapes and dtypes, of which the first dtype is the one that is written through;
  `turned` says that columns of a tile are rows of the out. `beside` are how many arrays like it a
  tile of sums needs to be finished; see Block.fetch.
  """
  dtype = jnp.dtype(outs[0].dtype)
  kept = beside * c.rows * c.cols * dtype.itemsize
  slots = c.slots(kept + sum(o.bytes(c) for o in operands), c.written(turned))
  rows, columns = c.written(turned) // MULTIPLIERS // WRITTEN, WRITTEN // dtype.itemsize
  written = (MULTIPLIERS, slots, rows, columns)
  scratch = {
    "slices": [o.smem(c) for o in operands],
    "written": plgpu.SMEM(written, dtype, transforms=swizzled(1, columns, dtype)),
    "full": plgpu.Barrier(num_arrivals=len(operands), num_barriers=c.stages),
    "empty": plgpu.Barrier(num_arrivals=MULTIPLIERS, num_barriers=c.stages),
  }
  if beside:
    shape = (MULTIPLIERS, beside, *c.half())
    scratch["beside"] = plgpu.SMEM(shape, dtype, transforms=swizzled(8, c.half()[1], dtype))
    scratch["come"] = plgpu.Barrier(num_arrivals=beside, num_barriers=MULTIPLIERS)

  def whole(*arrays, **scratch):
    body(Block(c, tuple(operands), tuple(products), **scratch), *arrays)

  return plgpu.kernel(
    whole,
    out_type=list(outs),
    scratch_types=scratch,
    grid=(target.cores(),),
    grid_names=("sm",),
    num_threads=MULTIPLIERS + 1,
    thread_name="wg",
    kernel_name=name,
  )


@dataclasses.dataclass(frozen=True)
class Block:
  """What the warpgroups of a multiprocessor share, and what they do with it."""

  config: Config
  operands: tuple[Operand, ...]
  products: tuple[tuple[int, int], ...]
  slices: list
  written: typing.Any
  full: typing.Any
  empty: typing.Any
  beside: typing.Any = None
  come: typing.Any = None

  def run(self, number, length, copy, tile) -> None:
    """Tiles i, of `number`, this multiprocessor's.

    Each has length(i) slices; copy(i, k, start) calls start(*sources) for slice k, a source for
    each operand. tile(i, done), of those that multiply, sums and writes them: it returns how many
    slices are done in all.
    """
    me = lax.axis_index("wg")

    @pl.when(me == MULTIPLIERS)
    def _():
      plgpu.set_max_registers(40, action="decrease")
      done = self._over(number, lambda i, done: self._copied(length(i), i, copy, done))
      _drained(done, self.config.stages, self.empty)  # all copies have been read

    @pl.when(me < MULTIPLIERS)
    def _():
      plgpu.set_max_registers(232, action="increase")
      self._over(number, tile)
      plgpu.wait_smem_to_gmem(0)

  def _over(self, number, tile):
    """tile(i, done) for each tile of this multiprocessor."""
    sm, cores = lax.axis_index("sm"), lax.axis_size("sm")
    mine = lax.div(number - sm + cores - 1, cores)
    return lax.fori_loop(0, mine, lambda j, done: tile(sm + j * cores, done), jnp.int32(0))

  def _copied(self, length, i, copy, done):
    """A tile's slices, each as soon as its place is empty."""
    stages = self.config.stages

    def step(k, done):
      slot = lax.rem(done, stages)

      @pl.when(done >= stages)
      def _():
        plgpu.barrier_wait(self.empty.at[slot])

      def start(*sources):
        for source, smem in zip(sources, self.slices, strict=True):
          plgpu.copy_gmem_to_smem(source, smem.at[slot], self.full.at[slot])

      copy(i, k, start)
      return done + 1

    return lax.fori_loop(0, length, step, done)

  def half(self):
    """(row, col) where this warpgroup's half of a tile begins."""
    me, (rows, cols) = lax.axis_index("wg"), self.config.half()
    return (me * rows, 0) if rows < self.config.rows else (0, me * cols)

  def summed(self, length, done, *, dtype=jnp.float32, before=None, read=None):
    """(sums of this half of a tile over the next slices, what `read` saw in the last, done).

    before(k, refs) may change a slice before it is multiplied, read(refs) look at the last one.
    """
    c = self.config

    def multiply(*sums):
      def step(k, done):
        plgpu.barrier_wait(self.full.at[lax.rem(done, c.stages)])
        refs = self._refs(done)
        if before is not None:
          before(k, refs)
        for acc, (a, b) in zip(sums, self.products, strict=True):
          plgpu.wgmma(acc, self._view(a, refs), self._view(b, refs))
        # then the slices before these may go; an operand in registers is not kept for long
        plgpu.wgmma_wait(0 if any(o.wide for o in self.operands) else len(sums))

        @pl.when(k > 0)
        def _():
          self._release(done - 1)

        return done + 1

      lax.fori_loop(0, length, step, done)
      return [acc[...] for acc in sums]

    accumulators = [plgpu.WGMMAAccumulatorRef(c.half(), dtype)] * len(self.products)
    sums = pl.run_scoped(multiply, *accumulators)
    done += length
    seen = None if read is None else read(self._refs(jnp.maximum(done - 1, 0)))

    @pl.when(length > 0)
    def _():
      self._release(done - 1)

    return sums, seen, done

  def fetch(self, tile, arrays) -> None:
    """Starts to copy what each of the arrays has where this half of a tile will be written."""
    me, (row, col), (rows, cols) = lax.axis_index("wg"), self.half(), self.config.half()
    _, first, _, start = tile
    own = pl.ds(first + row, rows), pl.ds(start + col, cols)
    for n, array in enumerate(arrays):
      plgpu.copy_gmem_to_smem(array.at[own], self.beside.at[me, n], self.come.at[me])

  def fetched(self):
    """read(n, start, size): so many columns of array n, in float32."""
    me = lax.axis_index("wg")
    plgpu.barrier_wait(self.come.at[me])
    return lambda n, start, size: self.beside[me, n, :, pl.ds(start, size)].astype(jnp.float32)

  def write(self, values, outs, left, row, col) -> None:
    """This half of a tile, of which the first `left` rows belong to it, into outs at (row, col).

    values(start, size) are so many columns of what each of the outs gets.
    """
    count, size = 0, self.written.shape[-1]
    for start in range(0, self.config.half()[1], size):
      for value, out in zip(values(start, size), outs, strict=True):
        buffer = self._buffer(count)
        buffer[...] = value.astype(buffer.dtype)
        _leave(buffer, left, out, row, col + start)
        count += 1

  def write_rows(self, tile, values, outs) -> None:
    """The same of a tile of Walk's."""
    (row, col), (_, first, size, start) = self.half(), tile
    left = jnp.clip(size - row, 0, self.config.half()[0])
    self.write(values, outs, left, first + row, start + col)

  def write_turned(self, values, out, left, row, col) -> None:
    """The same where columns of the tile, of which `left` belong to it, are rows of the out."""
    size = self.written.shape[-2]
    for count, start in enumerate(range(0, self.config.half()[1], size)):
      buffer = self._buffer(count)
      value = columns(values, start, size).astype(buffer.dtype)
      value = plgpu.layout_cast(value, plgpu.Layout.WGMMA_TRANSPOSED)
      plgpu.transpose_ref(buffer, (1, 0))[...] = value
      _leave(buffer, jnp.clip(left - start, 0, size), out, row + start, col)

  def _buffer(self, count: int):
    """A place for results on their way out, when what was there has left."""
    slots = self.written.shape[1]
    # the last results of the tile before may be in any
    plgpu.wait_smem_to_gmem(slots - 1 if count else 0, wait_read_only=True)
    return self.written.at[lax.axis_index("wg"), count % slots]

  def _refs(self, done):
    """The slices of a step."""
    return [s.at[lax.rem(done, self.config.stages)] for s in self.slices]

  def _view(self, number: int, refs):
    """An operand of this half of a tile: [rows, inputs] or [inputs, columns]."""
    ref, o = refs[number], self.operands[number]
    own = pl.ds(self.half()[o.side == "b"], self.config.half()[o.side == "b"])
    ref = ref.at[own] if o.inner else ref.at[:, own]
    if o.wide:
      few = plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA_UPCAST_2X)
      return plgpu.layout_cast(_wide(few, o.wide), plgpu.Layout.WGMMA)
    turned = o.inner == (o.side == "b")
    return plgpu.transpose_ref(ref, (1, 0)) if turned else ref

  def _release(self, done) -> None:
    """What was multiplied in a step may be overwritten."""
    plgpu.barrier_arrive(self.empty.at[lax.rem(done, self.config.stages)])


def refuse(dtypes, sizes) -> None:
  """Says what these kernels do not do: other GPUs, other dtypes, sizes that tiles do not divide."""
  if target.platform() == "gpu" and not target.kind().startswith(HOPPER):
    raise NotImplementedError(f"mosaic_gpu: written for Hopper, this is {target.kind()}")
  if len(set(dtypes)) > 1 or not set(dtypes) <= {jnp.dtype(d) for d in WIDE}:
    told = " and ".join(str(d) for d in dtypes)
    raise NotImplementedError(f"mosaic_gpu: bfloat16 or float16 only, not {told}")
  for what, (size, step) in sizes.items():
    if size % step:
      raise NotImplementedError(f"mosaic_gpu: {size} {what} are no multiple of {step}")


def columns(values, start: int, size: int):
  """So many columns of a tile in registers."""
  return values[:, start : start + size]


def _leave(buffer, left, out, row, col) -> None:
  """The first `left` rows that were written to shared memory, into `out` at (row, col)."""
  plgpu.commit_smem()
  (rows, cols), done = buffer.shape, 0
  if isinstance(left, int):
    plgpu.copy_smem_to_gmem(buffer, out.at[pl.ds(row, rows), pl.ds(col, cols)])
    return
  while rows:

    @pl.when((left & rows) != 0)
    def _(rows=rows, done=done):
      to = out.at[pl.ds(row + done, rows), pl.ds(col, cols)]
      plgpu.copy_smem_to_gmem(buffer.at[pl.ds(done, rows)], to, commit_group=False)

    done += left & rows
    rows //= 2
  plgpu.commit_smem_to_gmem_group()


def _drained(done, slots: int, barrier) -> None:
  """Waits until what is still in so many slots has been read."""
  last = jnp.minimum(done, slots)

  @pl.loop(0, last)
  def _(n):
    plgpu.barrier_wait(barrier.at[lax.rem(done - last + n, slots)])


def _wide(values, dtype):
  """8-bit numbers in 16 bits, exactly; floats have no direct way to bfloat16."""
  if jnp.issubdtype(values.dtype, jnp.floating) and dtype == jnp.bfloat16:
    values = values.astype(jnp.float32)
  return values.astype(dtype)
