"""Gated expert FFNs of operations that are chosen one by one: rows, matmuls, tokens."""

import jax

from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.permute import permute, unpermute


def swiglu(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  """y[n] = sum over the rows of n of gate * (silu(x wg) * (x wu)) wo, with the row's expert."""
  x_MD = permute(x_ND, token_M, row_NK)
  h_MF = jax.nn.silu(grouped_matmul(x_MD, wg_EDF, size_E)) * grouped_matmul(x_MD, wu_EDF, size_E)
  return unpermute(grouped_matmul(h_MF, wo_EFD, size_E), gate_M, token_M, row_NK)
