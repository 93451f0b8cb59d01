"""Rows of tokens and back in Pallas Triton: programs read the rows that a table names.

Each number is read once and written once, and sums are by the program that writes them: over the K
rows of a token in the order of k, over the columns of a row from left to right. Rows that nobody
has are not read.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import choose
from pallas_kernels import permute as op
from pallas_kernels import triton_blocks as blocks


class Config(typing.NamedTuple):
  """Numbers that a program works on at once, and its warps."""

  held: int
  warps: int


def candidates() -> list[Config]:
  """What a tuner tries, the first without a measurement."""
  return [Config(4096, 4), Config(2048, 4), Config(8192, 4), Config(8192, 8), Config(1024, 2)]


def rows(x_ND, token_M, *, config=None, interpret=False):
  """x[token of m], zeros for a row of nobody."""
  M, (N, D) = len(token_M), x_ND.shape
  (b, c), warps = _tile("rows", x_ND, {"N": N, "M": M, "D": D}, config)

  def kernel(x_ND, token_M, x_MD):
    i, j = blocks.divided(pl.program_id(0), pl.cdiv(D, c))
    row, own_b, own_c = pl.ds(i * b, b), blocks.below(i * b, b, M), blocks.below(j * c, c, D)
    token_b = plgpu.load(token_M.at[row], mask=own_b, other=-1)
    x_bc = _gathered(x_ND, token_b, token_b >= 0, j * c, own_c)
    plgpu.store(x_MD.at[row, pl.ds(j * c, c)], x_bc, mask=own_b[:, None] & own_c[None])

  shape = jax.ShapeDtypeStruct((M, D), x_ND.dtype)
  return _call(kernel, "permute", shape, (b, c), warps, M, D, interpret)(x_ND, token_M)


def tokens(y_MD, gate_M, row_NK, *, config=None, interpret=False):
  """y[n] = sum of gate * y[m] over the rows m of n; without gates the plain sum."""
  (M, D), (N, K) = y_MD.shape, row_NK.shape
  (b, c), warps = _tile("tokens", y_MD, {"N": N, "K": K, "M": M, "D": D}, config)

  def kernel(y_MD, row_NK, *rest):
    *gate_M, y_ND = rest
    i, j = blocks.divided(pl.program_id(0), pl.cdiv(D, c))
    token, own_b, own_c = pl.ds(i * b, b), blocks.below(i * b, b, N), blocks.below(j * c, c, D)

    def add(k, sum_bc):
      row_b1 = plgpu.load(row_NK.at[token, pl.ds(k, 1)], mask=own_b[:, None], other=M)
      row_b = row_b1.reshape(b)
      used_b = row_b < M
      y_bc = _gathered(y_MD, row_b, used_b, j * c, own_c).astype(jnp.float32)
      if gate_M:
        y_bc *= plgpu.load(gate_M[0].at[row_b], mask=used_b, other=0.0)[:, None]
      return sum_bc + y_bc

    sum_bc = lax.fori_loop(0, K, add, jnp.zeros((b, c), jnp.float32))
    place, mask = y_ND.at[token, pl.ds(j * c, c)], own_b[:, None] & own_c[None]
    plgpu.store(place, sum_bc.astype(y_MD.dtype), mask=mask)

  shape, gates = jax.ShapeDtypeStruct((N, D), y_MD.dtype), () if gate_M is None else (gate_M,)
  run = _call(kernel, "unpermute", shape, (b, c), warps, N, D, interpret)
  return run(y_MD, row_NK, *(gate_M.astype(jnp.float32) for gate_M in gates))


def d_tokens(dy_ND, y_MD, gate_M, token_M, *, config=None, interpret=False):
  """(gate * dy[token of m], the product of y[m] and dy[token of m]); zeros for a row of nobody."""
  M, D = y_MD.shape
  (b, c), warps = _tile("d_tokens", y_MD, {"N": len(dy_ND), "M": M, "D": D}, config)

  def kernel(dy_ND, y_MD, gate_M, token_M, dy_MD, dgate_M):
    start = pl.program_id(0) * b
    row, own_b = pl.ds(start, b), blocks.below(start, b, M)
    token_b = plgpu.load(token_M.at[row], mask=own_b, other=-1)
    used_b = token_b >= 0
    gate_b1 = plgpu.load(gate_M.at[row], mask=used_b, other=0.0)[:, None]

    def add(j, sum_b):
      at, own_c = (row, pl.ds(j * c, c)), blocks.below(j * c, c, D)
      dy_bc = _gathered(dy_ND, token_b, used_b, j * c, own_c).astype(jnp.float32)
      y_bc = plgpu.load(y_MD.at[at], mask=used_b[:, None] & own_c[None], other=0.0)
      mask = own_b[:, None] & own_c[None]
      plgpu.store(dy_MD.at[at], (gate_b1 * dy_bc).astype(y_MD.dtype), mask=mask)
      return sum_b + jnp.sum(dy_bc * y_bc.astype(jnp.float32), axis=1)

    sum_b = lax.fori_loop(0, pl.cdiv(D, c), add, jnp.zeros(b, jnp.float32))
    plgpu.store(dgate_M.at[row], sum_b, mask=own_b)

  shapes = [jax.ShapeDtypeStruct((M, D), y_MD.dtype), jax.ShapeDtypeStruct((M,), jnp.float32)]
  run = _call(kernel, "unpermute_gradient", shapes, (b, c), warps, M, c, interpret)
  return run(dy_ND, y_MD, gate_M.astype(jnp.float32), token_M)


def _gathered(a, row_b, used_b, start, own_c):
  """Columns from `start` of the rows that are named, zeros for unused ones."""
  at = row_b[:, None], blocks.ids(start, len(own_c))[None]
  return plgpu.load(a.at[at], mask=used_b[:, None] & own_c[None], other=0.0)


def _tile(part: str, a, shape: dict, config) -> tuple[tuple[int, int], int]:
  """((rows, columns) that a program works on, its warps): as given, as measured, or a guess."""
  if a.dtype.name not in blocks.DTYPES or not a.size:
    raise NotImplementedError(f"triton: no kernel for rows of {a.dtype}{list(a.shape)}")
  tried = candidates()
  found = config or choose.config("permute", part, shape, a.dtype, "triton", tried)
  held, warps = found or tried[0]
  columns = min(pl.next_power_of_2(a.shape[1]), 1024)
  return (min(held // columns, 128), columns), warps


def _call(kernel, name, out_shape, tile, warps, rows, columns, interpret):
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    grid=(pl.cdiv(rows, tile[0]) * pl.cdiv(columns, tile[1]),),
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=2),
    interpret=interpret,
    name=name,
  )


permute = functools.partial(op.permute, implementation="triton")
unpermute = functools.partial(op.unpermute, implementation="triton")
