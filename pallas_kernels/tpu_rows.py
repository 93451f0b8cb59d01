"""Single rows from HBM to VMEM, on TPUs: what gathers of tokens and sums over rows are made of.

A copy can take one row of an array if its numbers have 32 bits; two rows of 16 bits share words. So
numbers of bfloat16 are paired within their row beforehand: 256 columns become 128 words, column j
below column 128 + j, whose halves a kernel parts again as whole registers.
Rows whose width is no multiple of 256 become float32 instead, twice as long.

Ids come to a kernel tile by tile in SMEM, those of the next tile with them: while a tile is worked
on, the rows of the next one are on their way. Nothing here has an order that could change a sum.
"""

import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

GROUP = 256
LANES = 128
HIGH = 0xFFFF0000
PASS = 1 << 19  # numbers that are paired at a time


def packs(dtype, D: int) -> bool:
  """Whether two numbers share a word.

  >>> packs(jnp.bfloat16, 512), packs(jnp.bfloat16, 200), packs(jnp.float32, 512)
  (True, False, False)
  """
  return dtype == jnp.bfloat16 and D % GROUP == 0


def words(x_ND, interpret=False):
  """[N, D] as whole words, [N, D / 2] where two numbers share one; a pass over x in that case.

  >>> words(jnp.ones((1, 3), jnp.bfloat16)).dtype
  dtype('float32')
  """
  (N, D), dtype = x_ND.shape, x_ND.dtype
  if not packs(dtype, D):
    return x_ND.astype(jnp.float32)

  def kernel(x_bD, word_bW):
    word_bW[...] = pack(x_bD[...].astype(jnp.float32), dtype)

  b = max(16, min(-(-N // 16) * 16, PASS // D // 16 * 16))
  at = lambda width: pl.BlockSpec((b, width), lambda i: (i, 0))
  return pl.pallas_call(
    kernel,
    grid=(-(-N // b),),
    in_specs=[at(D)],
    out_specs=at(D // 2),
    out_shape=jax.ShapeDtypeStruct((N, D // 2), jnp.uint32),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=4 * N * D, transcendentals=0),
    interpret=interpret,
    name="words",
  )(x_ND)


def pack(y_bo, dtype):
  """The same of a tile inside a kernel, from float32; `dtype` is what the numbers are kept in.

  >>> pack(jnp.arange(512.0)[None], jnp.bfloat16).shape
  (1, 256)
  """
  if not packs(dtype, y_bo.shape[1]):
    return y_bo.astype(dtype).astype(jnp.float32)
  part = lambda first: _side_by_side(
    [y_bo[:, at : at + LANES] for at in range(first, y_bo.shape[1], GROUP)]
  )
  rounded = lambda a: lax.bitcast_convert_type(a.astype(dtype).astype(jnp.float32), jnp.uint32)
  return (rounded(part(0)) >> 16) | (rounded(part(LANES)) & jnp.uint32(HIGH))


def unpack(word_bw):
  """A tile of float32 numbers from words.

  >>> x = jnp.arange(256.0)[None]  # eight bits are enough for each
  >>> bool((unpack(pack(x, jnp.bfloat16)) == x).all())
  True
  """
  if word_bw.dtype == jnp.float32:
    return word_bw
  as_float = lambda a: lax.bitcast_convert_type(a, jnp.float32)
  low, high = as_float(word_bw << 16), as_float(word_bw & jnp.uint32(HIGH))
  parts = range(0, word_bw.shape[1], LANES)
  return _side_by_side([a[:, at : at + LANES] for at in parts for a in (low, high)])


def _side_by_side(parts):
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def by_tile(a_M, tiles: int, b: int):
  """[tiles, 1, b] of one number per row, zeros behind the last.

  >>> by_tile(jnp.array([1, 2, 3]), 2, 2).tolist()
  [[[1, 2]], [[3, 0]]]
  """
  return jnp.pad(a_M, (0, tiles * b - len(a_M))).reshape(tiles, 1, b)


def fetch(id_11r, source, into, semaphore) -> None:
  """Starts a copy of source(id), a row, for each of the ids; they arrive in the order of `into`."""

  def start(r, _):
    pltpu.make_async_copy(source(id_11r[0, 0, r]), into.at[pl.ds(r, 1)], semaphore).start()
    return 0

  rows = into.shape[0]
  lax.fori_loop(0, rows, start, 0, unroll=next(u for u in (8, 4, 2, 1) if rows % u == 0))


def arrived(into, semaphore) -> None:
  """Waits until all of `into` is there: a semaphore counts bytes, whatever they came in."""
  pltpu.make_async_copy(into, into, semaphore).wait()


class Fetched(typing.NamedTuple):
  """Rows that are not there: row m is that of token_M[m], D numbers of a type as whole words."""

  word_NW: jax.Array
  token_M: jax.Array
  D: int
  dtype: typing.Any


class Fetching(typing.NamedTuple):
  """How a kernel of visits fetches them: b rows at a time, `width` of their numbers."""

  rows: Fetched
  b: int
  width: int
  visit: int  # the axis of the grid on which visits follow one another

  def operands(self) -> list:
    """(array, block) of the tokens of this visit, those of the next one, and the words.

    The last scalars of the grid are the tiles of the visits.
    """
    tiles_ = -(-len(self.rows.token_M) // self.b)
    token_M = jnp.clip(self.rows.token_M, 0, len(self.rows.word_NW) - 1).astype(jnp.int32)
    token_T1b = by_tile(token_M, tiles_, self.b)

    def tokens(ahead):
      def at(*ids_and_map):
        v, tile_V = ids_and_map[self.visit], ids_and_map[-1]
        return tile_V[jnp.minimum(v + ahead, len(tile_V) - 1)], 0, 0

      return pl.BlockSpec((1, 1, self.b), at, memory_space=pltpu.SMEM)

    words = (self.rows.word_NW, pl.BlockSpec(memory_space=pl.ANY))
    return [(token_T1b, tokens(0)), (token_T1b, tokens(1)), words]

  def scratch(self) -> list:
    """Words that come in, twice, their semaphores, and the rows themselves."""
    words = self.rows.word_NW.dtype
    two = pltpu.VMEM((2, self.b, self.width * self._share() // 2), words)
    return [two, pltpu.SemaphoreType.DMA((2,)), pltpu.VMEM((self.b, self.width), self.rows.dtype)]

  def _share(self) -> int:
    return 1 if packs(self.rows.dtype, self.rows.D) else 2

  def run(self, v, last_visit, block, tile_V, now, after, word_hbm, buffer, semaphore, x_bi):
    """Fills x_bi at the first visit of a tile; its rows set out during the last visit before.

    `block` is which `width` of their numbers.
    """
    here, following = tile_V[v], tile_V[jnp.minimum(v + 1, last_visit)]
    width, slot = buffer.shape[2], here % 2

    def source(n):
      if self.rows.word_NW.shape[1] == width:
        return word_hbm.at[pl.ds(n, 1)]
      column = pl.multiple_of(block * width, LANES)
      return word_hbm.at[pl.ds(n, 1), pl.ds(column, width)]

    start = lambda ids, slot: fetch(ids, source, buffer.at[slot], semaphore.at[slot])

    @pl.when(v == 0)
    def _():
      start(now, slot)

    @pl.when(following != here)
    def _():
      start(after, 1 - slot)

    @pl.when((v == 0) | (tile_V[jnp.maximum(v - 1, 0)] != here))
    def _():
      arrived(buffer.at[slot], semaphore.at[slot])
      x_bi[...] = unpack(buffer[slot]).astype(x_bi.dtype)


def column(a_1b):
  """[1, b] as [b, 1]: the diagonal of what its copies fill."""
  return jnp.sum(jnp.where(_diagonal(a_1b.shape[1]), a_1b, 0), axis=1, keepdims=True)


def row(a_b1):
  """[b, 1] as [1, b]."""
  return jnp.sum(jnp.where(_diagonal(a_b1.shape[0]), a_b1, 0), axis=0, keepdims=True)


def _diagonal(b: int):
  return lax.broadcasted_iota(jnp.int32, (b, b), 0) == lax.broadcasted_iota(jnp.int32, (b, b), 1)
