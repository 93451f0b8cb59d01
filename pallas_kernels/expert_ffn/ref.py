"""Gated expert FFNs from tokens to tokens, as their definition. Memory [N, K, D, F]."""

import jax
import jax.numpy as jnp


def swiglu(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  """y[n] = sum over k of gate * FFN of row_NK[n, k]'s expert, if the row is in a group."""
  M, E = len(token_M), len(size_E)
  expert_M = jnp.searchsorted(jnp.cumsum(size_E), jnp.arange(M), side="right")
  used_NK = expert_M.at[row_NK].get(mode="fill", fill_value=E) < E
  at_NK = jnp.where(used_NK, row_NK, 0)
  expert_NK = jnp.minimum(expert_M[at_NK], E - 1)
  g_NKF = jnp.einsum("ND,NKDF->NKF", x_ND, wg_EDF[expert_NK])
  u_NKF = jnp.einsum("ND,NKDF->NKF", x_ND, wu_EDF[expert_NK])
  y_NKD = jnp.einsum("NKF,NKFD->NKD", jax.nn.silu(g_NKF) * u_NKF, wo_EFD[expert_NK])
  return jnp.einsum("NK,NKD->ND", jnp.where(used_NK, gate_M[at_NK], 0), y_NKD)
