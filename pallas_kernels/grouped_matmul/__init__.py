"""Grouped matmul: the implementation for the machine a program is traced for."""

import jax

from pallas_kernels import target
from pallas_kernels.grouped_matmul import ragged, xla


def grouped_matmul(x_MD, w_EDF, size_E) -> jax.Array:
  """y[m] = x[m] @ w[expert of m] for the first sum(size_E) rows; the others are zeros."""
  chosen = xla if target.platform() == "cpu" else ragged
  return chosen.grouped_matmul(x_MD, w_EDF, size_E)
