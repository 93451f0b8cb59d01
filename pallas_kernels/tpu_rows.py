"""Single rows from HBM to VMEM, on TPUs: what gathers of tokens and sums over rows are made of.

A copy can take one row of an array if its numbers have 32 bits; two rows of 16 bits share words. So
numbers of bfloat16 are paired within their row beforehand: a group of 256 columns becomes 128 words,
column j of the group below column 128 + j, whose halves a kernel parts again as whole registers.
Rows whose width is no multiple of 256 become float32 instead, twice as long.

Ids come to a kernel tile by tile in SMEM, those of the next tile with them: while a tile is worked
on, the rows of the next one are on their way. Nothing here has an order that could change a sum.
"""

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


def column(a_1b):
  """[1, b] as [b, 1]: the diagonal of what its copies fill."""
  return jnp.sum(jnp.where(_diagonal(a_1b.shape[1]), a_1b, 0), axis=1, keepdims=True)


def row(a_b1):
  """[b, 1] as [1, b]."""
  return jnp.sum(jnp.where(_diagonal(a_b1.shape[0]), a_b1, 0), axis=0, keepdims=True)


def _diagonal(b: int):
  return lax.broadcasted_iota(jnp.int32, (b, b), 0) == lax.broadcasted_iota(jnp.int32, (b, b), 1)
