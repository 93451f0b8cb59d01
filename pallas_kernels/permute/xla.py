"""Rows of tokens and back in plain XLA, for any machine: gathers, also in the gradients."""

import functools

import jax.numpy as jnp

from pallas_kernels import permute as op

FILL = {"mode": "fill", "fill_value": 0}


def rows(x_ND, token_M):
  """x[token of m], zeros for a row of nobody."""
  at_M = jnp.where(token_M < 0, len(x_ND), token_M)  # -1 would be the last token
  return x_ND.at[at_M].get(**FILL)


def tokens(y_MD, gate_M, row_NK):
  """The sum over k of gate * y: K gathers one after the other, each fuses with its addition."""
  total_ND = 0
  for k in range(row_NK.shape[1]):
    y_ND = _wide(y_MD.at[row_NK[:, k]].get(**FILL))
    if gate_M is not None:
      y_ND = y_ND * gate_M.at[row_NK[:, k]].get(**FILL)[:, None]
    total_ND += y_ND
  return jnp.asarray(total_ND).astype(y_MD.dtype)


def d_tokens(dy_ND, y_MD, gate_M, token_M):
  """(gate * dy[token of m], the product of y[m] and dy[token of m]); zeros for a row of nobody."""
  dy_MD, used_M = _wide(rows(dy_ND, token_M)), token_M >= 0
  dgate_M = jnp.sum(_wide(y_MD) * dy_MD, axis=1)
  dy_MD = jnp.where(used_M, gate_M, 0)[:, None] * dy_MD
  return dy_MD.astype(y_MD.dtype), jnp.where(used_M, dgate_M, 0)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))  # what sums are kept in


permute = functools.partial(op.permute, implementation="xla")
unpermute = functools.partial(op.unpermute, implementation="xla")
