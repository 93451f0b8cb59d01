"""Rows: what an expert function works on, and the way back to tokens."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
  """The M rows an expert function works on, not yet gathered: a fused kernel may read token_M."""

  x_ND: jax.Array
  token_M: jax.Array  # -1: a row of zeros
  gate_M: jax.Array

  def x_MD(self) -> jax.Array:
    """The rows themselves."""
    return self.x_ND.at[self._at_M()].get(mode="fill", fill_value=0)

  def combine(self, y_MD: jax.Array) -> jax.Array:
    """Rows back to their tokens: y[n] = sum of gate * y[m] over the rows m of n, in float32."""
    y_ND = jnp.zeros((len(self.x_ND), y_MD.shape[1]), jnp.float32)
    y_MD = y_MD * self.gate_M[:, None].astype(jnp.float32)
    return y_ND.at[self._at_M()].add(y_MD, mode="drop").astype(self.x_ND.dtype)

  def _at_M(self):
    return jnp.where(self.token_M < 0, len(self.x_ND), self.token_M)  # -1 would be the last row
