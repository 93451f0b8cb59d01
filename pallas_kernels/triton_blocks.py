"""Blocks of rows and columns in Pallas Triton: their settings, and how they are read at borders."""

import typing

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu

DTYPES = ("float32", "bfloat16", "float16")


class Config(typing.NamedTuple):
  """A tile of rows x cols sums depth products at a time; a band is so many columns of tiles."""

  rows: int
  cols: int
  depth: int
  warps: int
  stages: int
  band: int = 8


def load(ref, own_rows, own_cols):
  """What is there, and zeros where a mask says no: [rows] or [rows, 1], and [cols]."""
  if own_rows is own_cols is None:
    return plgpu.load(ref)
  return plgpu.load(ref, mask=mask(own_rows, own_cols, ref.shape), other=0.0)


def divided(a, b: int):
  """(a // b, a % b) of what is not negative, which is less work than rounding down."""
  return lax.div(a, b), lax.rem(a, b)


def below(start, size: int, limit):
  """Which of start..start+size are below the limit."""
  return ids(start, size) < limit


def inside(start, size: int, limit: int):
  """The same where blocks of this size may reach beyond the limit, else None: all."""
  return below(start, size, limit) if limit % size else None


def mask(own_rows, own_cols, shape):
  """Both together as one mask of this shape."""
  own = jnp.full(shape, True)
  if own_rows is not None:
    own &= own_rows.reshape(-1, 1)
  return own if own_cols is None else own & own_cols[None]


def ids(start, size: int):
  """start..start+size, to name rows or columns one by one."""
  return start + jnp.arange(size, dtype=jnp.int32)


def dot(a, b):
  """A matmul whose sums are int32 of integers, else float32."""
  exact = jnp.int32 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.float32
  return jnp.dot(a, b, preferred_element_type=exact)
