"""Numbers of few bits with scales: what a grouped matmul may be given for weights, and for rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=("values", "scale"), meta_fields=("turned",)
)
@dataclasses.dataclass(frozen=True)
class Quantised:
  """values * scale, in int8 or an 8-bit float.

  Of weights: values_EDF and scale_EBF, a scale for each of B equal blocks of D (B = 1: for each
  channel of F). Turned weights are values_EFD, with D innermost as Hopper's tensor cores read
  8-bit numbers. Of rows: values_MD and scale_M1.
  """

  values: jax.Array
  scale: jax.Array
  turned: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    """[E, D, F] or [M, D], however they lie."""
    *most, D, F = self.values.shape
    return (*most, F, D) if self.turned else (*most, D, F)


def quantise(x: jax.Array, dtype=jnp.int8, blocks: int = 1, turned: bool = False) -> Quantised:
  """Weights [E, D, F] or, with one scale per row, rows [M, D]; the largest of a block is kept.

  >>> q = quantise(jnp.array([[1.0, -2.0]]))
  >>> q.values.tolist(), wide(q).tolist()
  ([[64, -127]], [[1.0078740119934082, -2.0]])
  >>> q = quantise(jnp.ones((2, 4, 3)), blocks=2, turned=True)
  >>> q.values.shape, q.scale.shape, q.shape
  ((2, 3, 4), (2, 2, 3), (2, 4, 3))
  """
  D = x.shape[-1] if x.ndim == 2 else x.shape[-2]
  if D % blocks:
    raise ValueError(f"quantise: {blocks} blocks do not divide D={D}; choose a divisor.")
  if turned and x.ndim == 2:
    raise ValueError("quantise: rows [M, D] have D innermost; turn weights [E, D, F] only.")
  integer = jnp.issubdtype(dtype, jnp.integer)
  largest = float(jnp.iinfo(dtype).max if integer else jnp.finfo(dtype).max)
  cut = x.astype(jnp.float32)
  axis = -1
  if x.ndim == 3:
    cut, axis = cut.reshape(x.shape[0], blocks, D // blocks, x.shape[2]), 2
  scale = jnp.max(jnp.abs(cut), axis, keepdims=True) / largest
  values = cut / jnp.where(scale > 0, scale, 1)
  values = (jnp.round(values) if integer else values).astype(dtype).reshape(x.shape)
  if x.ndim == 2:
    return Quantised(values, scale)
  return Quantised(values.mT if turned else values, scale[:, :, 0], turned)


def wide(q: Quantised, dtype=jnp.float32) -> jax.Array:
  """The numbers themselves, weights as [E, D, F]."""
  if q.values.ndim == 2:
    return (q.values.astype(jnp.float32) * q.scale).astype(dtype)
  (E, D, F), values = q.shape, straight(q).values
  cut = values.reshape(E, q.scale.shape[1], -1, F).astype(jnp.float32)
  return (cut * q.scale[:, :, None]).reshape(E, D, F).astype(dtype)


def straight(q: Quantised) -> Quantised:
  """The same as [E, D, F], which is a copy where they were turned."""
  return Quantised(q.values.mT, q.scale) if q.turned else q
