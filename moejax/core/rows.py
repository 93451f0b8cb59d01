"""Rows: what an expert function works on, and the way back to tokens."""

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import permute
from pallas_kernels.permute import xla


@flax.struct.dataclass
class Rows:
  """The M rows an expert function works on, not yet gathered: a fused kernel may read token_M.

  With row_NK, the table from tokens to rows, both directions are one operation
  (pallas_kernels/permute); without it, rows are added to their tokens one by one.
  """

  x_ND: jax.Array
  token_M: jax.Array  # -1: a row of zeros
  gate_M: jax.Array
  row_NK: jax.Array | None = None  # every row of each token; M: an unused choice

  def x_MD(self) -> jax.Array:
    """The rows themselves."""
    if self.row_NK is None:
      return xla.rows(self.x_ND, self.token_M)
    return permute.permute(self.x_ND, self.token_M, self.row_NK)

  def combine(self, y_MD: jax.Array) -> jax.Array:
    """Rows back to their tokens: y[n] = sum of gate * y[m] over the rows m of n, in float32."""
    y_MD = checkpoint_name(y_MD, "returned")
    if self.row_NK is not None:
      y_ND = permute.unpermute(y_MD, self.gate_M, self.token_M, self.row_NK)
      return y_ND.astype(self.x_ND.dtype)
    y_MD = y_MD * self.gate_M[:, None].astype(jnp.float32)
    at_M = jnp.where(self.token_M < 0, len(self.x_ND), self.token_M)  # -1 would be the last token
    y_ND = jnp.zeros((len(self.x_ND), y_MD.shape[1]), y_MD.dtype).at[at_M].add(y_MD, mode="drop")
    return y_ND.astype(self.x_ND.dtype)
