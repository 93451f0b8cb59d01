"""Rows of tokens and back in Pallas for TPUs: each row is a copy of its own out of HBM.

`rows` and `d_tokens` walk over tiles of rows and fetch the tokens, `tokens` walks over tiles of
tokens and fetches the K rows of each, which it adds up in that order. Copies of the next tile run
while a tile is worked on (pallas_kernels/tpu_rows.py).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import permute as op
from pallas_kernels import tpu_rows
from pallas_kernels.grouped_matmul.tpu_tiles import limit

ROOM = 4 << 20  # bytes of VMEM for the rows of a tile, of which two are there at once
MOST = 256  # rows of a tile


def rows(x_ND, token_M, interpret=False):
  """x[token of m], zeros for a row of nobody."""
  _check(x_ND.dtype)
  return sequential_vmap(functools.partial(_rows, interpret))(x_ND, token_M)


def _rows(interpret, x_ND, token_M):
  word_NW = tpu_rows.words(x_ND, interpret)
  return spread(tpu_rows.Fetched(word_NW, token_M, x_ND.shape[1], x_ND.dtype), interpret)


def spread(fetched: tpu_rows.Fetched, interpret=False):
  """The same of tokens that are words already."""
  word_NW, token_M, D, dtype = fetched
  N, M, b = len(word_NW), len(token_M), tile(1, D, dtype)
  tiles = -(-M // b)

  def kernel(used_11b, word_bw, x_bD):
    used_b1 = tpu_rows.column(used_11b[0]) > 0
    x_bD[...] = jnp.where(used_b1, tpu_rows.unpack(word_bw), 0).astype(dtype)

  used_T1b = tpu_rows.by_tile((token_M >= 0).astype(jnp.float32), tiles, b)
  return _call(
    kernel,
    "permute",
    jnp.clip(token_M, 0, N - 1),
    word_NW,
    b,
    [(used_T1b, pl.BlockSpec((1, 1, b), lambda i: (i, 0, 0)))],
    [(jax.ShapeDtypeStruct((M, D), dtype), pl.BlockSpec((b, D), lambda i: (i, 0)))],
    2 * M * D * jnp.dtype(dtype).itemsize,
    interpret,
  )[0]


def tokens(y_MD, gate_M, row_NK, interpret=False):
  """y[n] = sum of gate * y[m] over the rows m of n; without gates the plain sum."""
  _check(y_MD.dtype)
  gated = gate_M is not None
  gate_M = gate_M if gated else jnp.zeros(len(y_MD), jnp.float32)
  run = sequential_vmap(functools.partial(_tokens, gated, interpret))
  return run(y_MD, gate_M, row_NK)


def _tokens(gated, interpret, y_MD, gate_M, row_NK):
  gate_NK = gate_M.at[row_NK].get(mode="fill", fill_value=0) if gated else None
  words, D = tpu_rows.words(y_MD, interpret), y_MD.shape[1]
  return sums(words, row_NK, D, y_MD.dtype, gate_NK, interpret)


def sums(word_MW, row_NK, D, dtype, gate_NK=None, interpret=False):
  """The same of rows that are words already, with the gates of tokens."""
  (N, K), M = row_NK.shape, len(word_MW)
  b = tile(K, D, dtype)
  tiles = -(-N // b)
  row_NK = jnp.pad(row_NK, ((0, tiles * b - N), (0, 0)), constant_values=M)
  id_TKb = jnp.clip(row_NK, 0, M - 1).reshape(tiles, b, K).swapaxes(1, 2)

  def kernel(row_bK, *rest):
    *gate_bK, word_rw, y_bD = rest
    total_bD = jnp.zeros(y_bD.shape, jnp.float32)
    for k in range(K):
      part_bD = tpu_rows.unpack(word_rw[k * b : (k + 1) * b])
      if gated:
        part_bD = part_bD * gate_bK[0][:, k : k + 1]
      total_bD += jnp.where(row_bK[:, k : k + 1] < M, part_bD, 0)
    y_bD[...] = total_bD.astype(dtype)

  gated, by_token = gate_NK is not None, pl.BlockSpec((b, K), lambda i: (i, 0))
  beside = [(row_NK.astype(jnp.int32), by_token)]
  if gate_NK is not None:
    beside += [(gate_NK.astype(jnp.float32), by_token)]
  return _call(
    kernel,
    "unpermute",
    id_TKb.ravel(),
    word_MW,
    b * K,
    beside,
    [(jax.ShapeDtypeStruct((N, D), dtype), pl.BlockSpec((b, D), lambda i: (i, 0)))],
    (N * K + N) * D * jnp.dtype(dtype).itemsize,
    interpret,
  )[0]


def d_tokens(dy_ND, y_MD, gate_M, token_M, interpret=False):
  """(gate * dy[token of m], the product of y[m] and dy[token of m]); zeros for a row of nobody."""
  _check(dy_ND.dtype)
  run = sequential_vmap(functools.partial(_d_tokens, interpret))
  return run(dy_ND, y_MD, gate_M, token_M)


def _d_tokens(interpret, dy_ND, y_MD, gate_M, token_M):
  (N, D), M, dtype = dy_ND.shape, len(token_M), dy_ND.dtype
  b = tile(1, D, dtype)
  tiles = -(-M // b)

  def kernel(used_11b, gate_11b, y_bD, word_bw, dy_bD, dgate_11b):
    used_1b, dy = used_11b[0] > 0, tpu_rows.unpack(word_bw)
    gate_b1 = tpu_rows.column(jnp.where(used_1b, gate_11b[0], 0))
    dy_bD[...] = (gate_b1 * dy).astype(dy_bD.dtype)
    dgate_b1 = jnp.sum(y_bD[...].astype(jnp.float32) * dy, axis=1, keepdims=True)
    dgate_11b[0] = jnp.where(used_1b, tpu_rows.row(dgate_b1), 0)

  lanes, wide = (pl.BlockSpec(s, m) for s, m in [
    ((1, 1, b), lambda i: (i, 0, 0)), ((b, D), lambda i: (i, 0))
  ])  # fmt: skip
  numbers = lambda a_M: tpu_rows.by_tile(a_M.astype(jnp.float32), tiles, b)
  dy_MD, dgate_T1b = _call(
    kernel,
    "unpermute_gradient",
    jnp.clip(token_M, 0, N - 1),
    tpu_rows.words(dy_ND, interpret),
    b,
    [(numbers(token_M >= 0), lanes), (numbers(gate_M), lanes), (y_MD, wide)],
    [
      (jax.ShapeDtypeStruct((M, D), y_MD.dtype), wide),
      (jax.ShapeDtypeStruct((tiles, 1, b), jnp.float32), lanes),
    ],
    3 * M * D * dtype.itemsize,
    interpret,
  )
  return dy_MD, dgate_T1b.ravel()[:M]


def tile(K: int, D: int, dtype) -> int:
  """Rows, or tokens with K rows each, that are worked on at once.

  >>> tile(1, 2048, jnp.bfloat16), tile(8, 7168, jnp.bfloat16), tile(1, 5, jnp.float32)
  (256, 32, 256)
  """
  size = 2 if tpu_rows.packs(dtype, D) else 4
  fits = ROOM // (K * D * size)
  if fits < 16:
    raise NotImplementedError(
      f"{K} rows of {D} numbers for each of 16 tokens; {ROOM} bytes are done"
    )
  return min(MOST, 1 << int(math.log2(fits)))


def _call(kernel, name, id_R, word_NW, rows, beside, outs, traffic, interpret):
  """kernel(*beside, words of `rows` rows, *outs) on every tile, in turn.

  id_R are those of all tiles, `rows` for each; beside and outs have a block for a tile.
  """
  tiles = -(-len(id_R) // rows)
  id_T1r = tpu_rows.by_tile(id_R.astype(jnp.int32), tiles, rows)
  ids = lambda at: pl.BlockSpec((1, 1, rows), at, memory_space=pltpu.SMEM)

  def body(now, after, word_hbm, *rest):
    *rest, buffer, semaphore = rest
    i, count = pl.program_id(0), pl.num_programs(0)
    slot = i % 2
    start = lambda id_11r, slot: tpu_rows.fetch(
      id_11r, lambda n: word_hbm.at[pl.ds(n, 1)], buffer.at[slot], semaphore.at[slot]
    )

    @pl.when(i == 0)
    def _():
      start(now, 0)

    @pl.when(i + 1 < count)
    def _():
      start(after, 1 - slot)

    tpu_rows.arrived(buffer.at[slot], semaphore.at[slot])
    kernel(*rest[: len(beside)], buffer[slot], *rest[len(beside) :])

  arrays, specs = zip(*beside, strict=True)
  return pl.pallas_call(
    body,
    grid=(tiles,),
    in_specs=[
      ids(lambda i: (i, 0, 0)),
      ids(lambda i: (jnp.minimum(i + 1, tiles - 1), 0, 0)),
      pl.BlockSpec(memory_space=pl.ANY),
      *specs,
    ],
    out_shape=[shape for shape, _ in outs],
    out_specs=[spec for _, spec in outs],
    scratch_shapes=[
      pltpu.VMEM((2, rows, word_NW.shape[1]), word_NW.dtype),
      pltpu.SemaphoreType.DMA((2,)),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",), vmem_limit_bytes=limit()
    ),
    cost_estimate=pl.CostEstimate(flops=0, bytes_accessed=traffic, transcendentals=0),
    interpret=interpret,
    name=name,
  )(id_T1r, id_T1r, word_NW, *arrays)


def _check(dtype) -> None:
  if dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError(f"rows are {dtype}; bfloat16 and float32 are done")


permute = functools.partial(op.permute, implementation="tpu")
unpermute = functools.partial(op.unpermute, implementation="tpu")
