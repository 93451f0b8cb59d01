"""Rows of tokens and back, as their definition in loops of numpy."""

import numpy as np


def rows(x_ND, token_M):
  """x[token of m], zeros for a row of nobody."""
  x_MD = np.zeros((len(token_M), x_ND.shape[1]), x_ND.dtype)
  for m, n in enumerate(token_M):
    if n >= 0:
      x_MD[m] = x_ND[n]
  return x_MD


def tokens(y_MD, gate_M, row_NK):
  """y[n] = sum of gate * y[m] over the rows m of n."""
  y_ND = np.zeros((len(row_NK), y_MD.shape[1]), y_MD.dtype)
  for n, row_K in enumerate(row_NK):
    for m in row_K[row_K < len(y_MD)]:
      y_ND[n] += y_MD[m] if gate_M is None else gate_M[m] * y_MD[m]
  return y_ND


def d_tokens(dy_ND, y_MD, gate_M, token_M):
  """(gate * dy[token of m], the product of y[m] and dy[token of m])."""
  dy_MD, dgate_M = np.zeros_like(y_MD), np.zeros(len(y_MD), y_MD.dtype)
  for m, n in enumerate(token_M):
    if n >= 0:
      dy_MD[m], dgate_M[m] = gate_M[m] * dy_ND[n], y_MD[m] @ dy_ND[n]
  return dy_MD, dgate_M
