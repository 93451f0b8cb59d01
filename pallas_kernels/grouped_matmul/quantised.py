"""Numbers of few bits with scales: what a grouped matmul may be given for weights, and for rows."""

import typing

import jax
import jax.numpy as jnp


class Quantised(typing.NamedTuple):
  """values * scale, in int8 or an 8-bit float.

  Of weights: values_EDF and scale_EBF, a scale for each of B equal blocks of D (B = 1: for each
  channel of F). Of rows: values_MD and scale_M1.
  """

  values: jax.Array
  scale: jax.Array


def quantise(x: jax.Array, dtype=jnp.int8, blocks: int = 1) -> Quantised:
  """Weights [E, D, F] or, with one scale per row, rows [M, D]; the largest of a block is kept.

  >>> q = quantise(jnp.array([[1.0, -2.0]]))
  >>> q.values.tolist(), wide(q).tolist()
  ([[64, -127]], [[1.0078740119934082, -2.0]])
  """
  D = x.shape[-1] if x.ndim == 2 else x.shape[-2]
  if D % blocks:
    raise ValueError(f"quantise: {blocks} blocks do not divide D={D}; choose a divisor.")
  integer = jnp.issubdtype(dtype, jnp.integer)
  largest = float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
  cut = x.astype(jnp.float32)
  axis = -1
  if x.ndim == 3:
    cut, axis = cut.reshape(x.shape[0], blocks, D // blocks, x.shape[2]), 2
  scale = jnp.max(jnp.abs(cut), axis, keepdims=True) / largest
  values = cut / jnp.where(scale > 0, scale, 1)
  values = (jnp.round(values) if integer else values).astype(dtype).reshape(x.shape)
  return Quantised(values, scale if x.ndim == 2 else scale[:, :, 0])


def wide(q: Quantised, dtype=jnp.float32) -> jax.Array:
  """The numbers themselves."""
  if q.values.ndim == 2:
    return (q.values.astype(jnp.float32) * q.scale).astype(dtype)
  E, D, F = q.values.shape
  cut = q.values.reshape(E, q.scale.shape[1], -1, F).astype(jnp.float32)
  return (cut * q.scale[:, :, None]).reshape(E, D, F).astype(dtype)
