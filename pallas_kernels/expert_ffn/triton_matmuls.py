"""The two kinds of matmul that a fused expert FFN consists of, in Pallas Triton.

Of rows with the matrices of their expert, and of rows with rows into an expert's matrix. Either may
read its rows where their tokens are (`token_M`), so that rows sorted by expert exist nowhere; may
do two products at once, where they share an operand or are added up; and the first kind ends with
what the caller does to a tile of sums while it is in registers.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import tiles
from pallas_kernels import triton_blocks as blocks


def by_rows(
  name, lefts, rights, size_E, finish, outs, *,
  config, token_M=None, turned=False, beside=(), reused=None, M, interpret=False,
):  # fmt: skip
  """Arrays [M, O], or [M, blocks of O] of numbers of a row, from tiles of sums.

  One left with several rights gives a tile of sums for each, several lefts with as many rights one
  tile of the sum of all. Rights are [E, I, O], turned [E, O, I]. finish(*sums, *beside) gets those
  of `beside` as a tile [rows, cols] of what is [M, O], a column [rows, 1] of what is [M], and gives
  a value for each of `outs`: a tile for a dtype, a column for None. `reused` are those of `beside`
  whose memory becomes that of an out. Rows of no expert are not written.
  """
  E, O, I = len(rights[0]), rights[0].shape[1 if turned else 2], lefts[0].shape[1]
  c, columns = config, pl.cdiv(O, config.cols)
  depth, band = min(c.depth, pl.next_power_of_2(I)), min(config.band, columns)
  expert_T, first_T, last_T = tiles.by_group(size_E, M, c.rows)
  number, sums = len(expert_T), len(rights) if len(lefts) == 1 else 1
  gathered = [] if token_M is None else [token_M]

  def kernel(*refs):
    expert_T, first_T, last_T, *refs = refs
    parts = [refs.pop(0) for _ in gathered], *_cut(refs, len(lefts), len(rights), len(beside))
    token_M, lefts_, rights_, beside_, outs_ = parts
    outer, inner = blocks.divided(pl.program_id(0), number * band)
    t, n = blocks.divided(inner, band)
    n += outer * band
    expert, first, last = expert_T[t], first_T[t], last_T[t]
    rows, cols = pl.ds(first, c.rows), pl.ds(n * c.cols, c.cols)
    own_r1 = blocks.below(first, c.rows, last)[:, None]
    own_c = blocks.inside(n * c.cols, c.cols, O)

    @pl.when((first < last) & (expert < E) & (n < columns))
    def _():
      token_r1 = _tokens(token_M, rows, own_r1)

      def step(k, sums):
        inputs, own_d = pl.ds(k * depth, depth), blocks.inside(k * depth, depth, I)
        x = [_rows(left, rows, token_r1, k * depth, depth, own_r1, own_d) for left in lefts_]
        if turned:
          w = [blocks.load(r.at[expert, cols, inputs], own_c, own_d).T for r in rights_]
        else:
          w = [blocks.load(r.at[expert, inputs, cols], own_d, own_c) for r in rights_]
        x *= len(w) // len(x)
        products = [blocks.dot(x_rd, w_dc) for x_rd, w_dc in zip(x, w, strict=True)]
        if len(sums) == 1:
          return [sum(products, sums[0])]
        return [sum_rc + y_rc for sum_rc, y_rc in zip(sums, products, strict=True)]

      zeros = [jnp.zeros((c.rows, c.cols), jnp.float32)] * sums
      done = lax.fori_loop(0, pl.cdiv(I, depth), step, zeros)
      column = lambda ref: plgpu.load(ref.at[rows], mask=own_r1[:, 0], other=0.0)[:, None]
      tile = lambda ref: blocks.load(ref.at[rows, cols], own_r1, own_c)
      read = [(column if len(ref.shape) == 1 else tile)(ref).astype(jnp.float32) for ref in beside_]
      for ref, value, dtype in zip(outs_, finish(*done, *read), outs, strict=True):
        at, own = (pl.ds(n, 1), None) if dtype is None else (cols, own_c)
        mask = blocks.mask(own_r1, own, value.shape)
        plgpu.store(ref.at[rows, at], value.astype(ref.dtype), mask=mask)

  shape = lambda d: jax.ShapeDtypeStruct((M, columns if d is None else O), d or jnp.float32)
  before = 3 + len(gathered) + len(lefts) + len(rights)
  return pl.pallas_call(
    kernel,
    out_shape=[shape(dtype) for dtype in outs],
    grid=(number * band * pl.cdiv(columns, band),),
    input_output_aliases={before + i: out for i, out in (reused or {}).items()},
    compiler_params=plgpu.CompilerParams(num_warps=c.warps, num_stages=c.stages),
    interpret=interpret,
    name=f"expert_ffn_{name}",
  )(expert_T, first_T, last_T, *gathered, *lefts, *rights, *beside)


def by_experts(
  name, left, rights, size_E, token_M, *, dtype, config, gathers_left, interpret=False
):
  """Matrices [E, I, O]: for each right the sum over an expert's rows of left[m] right[m].

  Either the left or the rights are read where the tokens of rows are.
  """
  M, E, I, O = len(token_M), len(size_E), left.shape[1], rights[0].shape[1]
  c = config
  blocks_i, blocks_o = pl.cdiv(I, c.rows), pl.cdiv(O, c.cols)
  last_E = jnp.minimum(jnp.cumsum(size_E, dtype=jnp.int32), M)
  first_E = jnp.append(0, last_E[:-1]).astype(jnp.int32)

  def kernel(first_E, last_E, token_M, left, *refs):
    rights_, outs_ = _cut(refs, len(rights))
    e, block = blocks.divided(pl.program_id(0), blocks_i * blocks_o)
    i, j = blocks.divided(block, blocks_o)
    first, last = first_E[e], last_E[e]
    own_i = blocks.inside(i * c.rows, c.rows, I)
    own_o = blocks.inside(j * c.cols, c.cols, O)

    def step(k, sums):
      start = first + k * c.depth
      rows, own_r1 = pl.ds(start, c.depth), blocks.below(start, c.depth, last)[:, None]
      token_r1 = _tokens([token_M], rows, own_r1)
      from_left, from_right = (token_r1, None) if gathers_left else (None, token_r1)
      x_ri = _rows(left, rows, from_left, i * c.rows, c.rows, own_r1, own_i)
      g = [_rows(r, rows, from_right, j * c.cols, c.cols, own_r1, own_o) for r in rights_]
      return [sum_io + blocks.dot(x_ri.T, g_ro) for sum_io, g_ro in zip(sums, g, strict=True)]

    zeros = [jnp.zeros((c.rows, c.cols), jnp.float32)] * len(rights)
    sums = lax.fori_loop(0, lax.div(last - first + c.depth - 1, c.depth), step, zeros)
    place = e, pl.ds(i * c.rows, c.rows), pl.ds(j * c.cols, c.cols)
    mask = None if own_i is own_o is None else blocks.mask(own_i, own_o, (c.rows, c.cols))
    for ref, sum_io in zip(outs_, sums, strict=True):
      plgpu.store(ref.at[place], sum_io.astype(dtype), mask=mask)

  return pl.pallas_call(
    kernel,
    out_shape=[jax.ShapeDtypeStruct((E, I, O), dtype)] * len(rights),
    grid=(E * blocks_i * blocks_o,),
    compiler_params=plgpu.CompilerParams(num_warps=c.warps, num_stages=c.stages),
    interpret=interpret,
    name=f"expert_ffn_{name}",
  )(first_E, last_E, token_M, left, *rights)


def _cut(refs, *lengths):
  """The refs in parts of these lengths, and the rest."""
  refs, parts = list(refs), []
  for length in lengths:
    parts.append(refs[:length])
    refs = refs[length:]
  return *parts, refs


def _tokens(token_M, rows, own_r1):
  """The tokens of rows as a column, or None without a table."""
  if not token_M:
    return None
  return plgpu.load(token_M[0].at[rows], mask=own_r1[:, 0], other=0)[:, None]


def _rows(ref, rows, token_r1, start, size, own_r1, own_c):
  """Columns from `start` of these rows, or of their tokens; zeros in rows that are not own."""
  if token_r1 is None:
    return blocks.load(ref.at[rows, pl.ds(start, size)], own_r1, own_c)
  return blocks.load(ref.at[token_r1, blocks.ids(start, size)[None]], own_r1, own_c)
