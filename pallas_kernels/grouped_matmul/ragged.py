"""Grouped matmul by the compiler's own ragged dot, for accelerators: on CPUs it costs E times.

What ragged_dot does with rows beyond the last group is not specified, so they are zeros going in
and zeros coming out.
"""

import functools

import jax.numpy as jnp
from jax import lax

from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul.quantised import Quantised, wide


def forward(x_MD, w_EDF, size_E):
  """y[m] = x[m] @ w[expert of m] for the first sum(size_E) rows; the others are zeros."""
  return _used(lax.ragged_dot(_used(x_MD, size_E), w_EDF, size_E), size_E)


def d_lhs(g_MF, w_EDF, size_E):
  """dx[m] = g[m] @ w[expert of m].T; the weights are not transposed in memory."""
  return _general(_used(g_MF, size_E), w_EDF, size_E, ([1], [2]), [0])


def d_rhs(x_MD, g_MF, size_E):
  """dw[e] = sum over the rows of e of x[m] g[m]."""
  return _general(_used(x_MD, size_E), _used(g_MF, size_E), size_E, ([0], [0]), [])


def quantised(x_MD, w: Quantised, size_E):
  """The forward pass with weights that are made wide first."""
  x_MD = wide(x_MD) if isinstance(x_MD, Quantised) else x_MD
  return forward(x_MD, wide(w, x_MD.dtype), size_E)


def _general(a, b, size_E, contracted, group_dimensions):
  numbers = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(contracted, ([], [])),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=group_dimensions,
  )
  out = lax.ragged_dot_general(a, b, size_E, numbers)
  return _used(out, size_E) if group_dimensions else out


def _used(x_MD, size_E):
  return jnp.where(jnp.arange(len(x_MD))[:, None] < size_E.sum(), x_MD, 0)


grouped_matmul = functools.partial(op.grouped_matmul, implementation="ragged")
