"""Rows: what an expert function works on, and the way back to tokens."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
  """The M rows an expert function works on, not yet gathered: a fused kernel may read token_M.

  With row_NK, the table from tokens to rows, both directions are gathers, also in the backward
  pass; without it, rows are added to their tokens one by one.
  """

  x_ND: jax.Array
  token_M: jax.Array  # -1: a row of zeros
  gate_M: jax.Array
  row_NK: jax.Array | None = None  # every row of each token; M: an unused choice

  def x_MD(self) -> jax.Array:
    """The rows themselves."""
    if self.row_NK is None:
      return _rows_of(self.x_ND, self.token_M)
    return _spread(self.x_ND, self.token_M, self.row_NK)

  def combine(self, y_MD: jax.Array) -> jax.Array:
    """Rows back to their tokens: y[n] = sum of gate * y[m] over the rows m of n, in float32."""
    y_MD = y_MD * self.gate_M[:, None].astype(jnp.float32)
    if self.row_NK is None:
      N = len(self.x_ND)
      at_M = jnp.where(self.token_M < 0, N, self.token_M)  # -1 would be the last token
      y_ND = jnp.zeros((N, y_MD.shape[1]), y_MD.dtype).at[at_M].add(y_MD, mode="drop")
    else:
      y_ND = _collect(y_MD, self.token_M, self.row_NK)
    return y_ND.astype(self.x_ND.dtype)


def _rows_of(x_ND, token_M):
  at_M = jnp.where(token_M < 0, len(x_ND), token_M)
  return x_ND.at[at_M].get(mode="fill", fill_value=0)


def _sums_of(y_MD, row_NK):
  """K gathers one after the other: each fuses with its addition."""
  take = lambda row_N: y_MD.at[row_N].get(mode="fill", fill_value=0)
  return sum(take(row_NK[:, k]) for k in range(row_NK.shape[1]))


# Two linear maps, each the transpose of the other; the automatic ones would scatter.
@jax.custom_vjp
def _spread(x_ND, token_M, row_NK):
  return _rows_of(x_ND, token_M)


@jax.custom_vjp
def _collect(y_MD, token_M, row_NK):
  return _sums_of(y_MD, row_NK)


_spread.defvjp(
  lambda x_ND, token_M, row_NK: (_rows_of(x_ND, token_M), row_NK),
  lambda row_NK, dx_MD: (_sums_of(dx_MD, row_NK), None, None),
)
_collect.defvjp(
  lambda y_MD, token_M, row_NK: (_sums_of(y_MD, row_NK), token_M),
  lambda token_M, dy_ND: (_rows_of(dy_ND, token_M), None, None),
)
