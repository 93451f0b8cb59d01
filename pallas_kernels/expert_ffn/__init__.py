"""Gated expert FFNs from tokens to tokens as one differentiable function, by whichever is best.

An implementation is a file beside this one that has

  swiglu(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E) -> y_ND

with gradients of everything real. What it does not do it says by NotImplementedError before it
hands anything to a custom gradient, and the next one is asked. `composed`, the last one, is made of
the operations permute and grouped_matmul, which are chosen by themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pallas_kernels import choose, target

FEW = 8  # rows per expert, below which a batch over all experts reads weights that nobody needs


def swiglu(
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, *, implementation=None
) -> jax.Array:
  """y[n] = sum over the rows of n of gate * (silu(x wg) * (x wu)) wo, with the row's expert.

  Rows are sorted by expert and token_M names their tokens; row_NK says where the choices of a token
  are, M for one that is unused. Rows beyond sum(size_E) count for nothing.

  >>> wg, wu, wo = jnp.full((2, 1, 1), 50.), jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1))
  >>> gate_M, token_M, row_NK = jnp.array([.5, 2.]), jnp.array([0, 0]), jnp.array([[0, 1]])
  >>> swiglu(jnp.ones((1, 1)), wg, wu, wo, gate_M, token_M, row_NK, jnp.array([1, 1])).tolist()
  [[125.0]]
  """
  _check(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)
  (E, D, F), (N, K), M = wg_EDF.shape, row_NK.shape, len(token_M)
  if implementation is None and target.platform() == "cpu" and M < FEW * E:
    implementation = "composed"
  which = {
    "shape": {"N": N, "K": K, "M": M, "D": D, "F": F, "E": E},
    "dtype": x_ND.dtype,
    "implementation": implementation,
  }
  size_E = jnp.asarray(size_E).astype(jnp.int32)
  args = (x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)
  return choose.call("expert_ffn", "swiglu", *args, **which)


def _check(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E) -> None:
  """Refuses, in one sentence, what no implementation could make sense of."""
  axes = [a.ndim for a in (x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)]
  if axes != [2, 3, 3, 3, 1, 1, 2, 1]:
    raise ValueError(
      f"expert_ffn: x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E have {axes} axes;"
      " they need [2, 3, 3, 3, 1, 1, 2, 1]."
    )
  E, D, F = wg_EDF.shape
  told = f"rows of {x_ND.shape[1]}, weights {[list(w.shape) for w in (wg_EDF, wu_EDF, wo_EFD)]}"
  if (x_ND.shape[1], wu_EDF.shape, wo_EFD.shape) != (D, (E, D, F), (E, F, D)):
    raise ValueError(f"expert_ffn: {told}; give [N, D], and [E, D, F] twice, then [E, F, D].")
  if len(size_E) != E:
    raise ValueError(f"expert_ffn: {len(size_E)} sizes for E={E} experts; give one each.")
  dtypes = sorted({str(a.dtype) for a in (x_ND, wg_EDF, wu_EDF, wo_EFD)})
  if len(dtypes) > 1 or not jnp.issubdtype(x_ND.dtype, jnp.floating):
    raise ValueError(f"expert_ffn: x and weights are {dtypes}; give all one floating dtype.")
  if len(row_NK) != len(x_ND) or gate_M.shape != token_M.shape:
    raise ValueError(
      f"expert_ffn: tables of {len(row_NK)} tokens, {len(token_M)} rows and {len(gate_M)} gates for"
      f" {len(x_ND)} tokens; give row_NK for all tokens, and a token and a gate for each row."
    )
  if not all(jnp.issubdtype(a.dtype, jnp.integer) for a in (token_M, row_NK, size_E)):
    raise ValueError(
      f"expert_ffn: token_M, row_NK, size_E are {token_M.dtype}, {row_NK.dtype}, {size_E.dtype};"
      " give int32."
    )
  if not isinstance(size_E, Tracer):
    size_E = np.asarray(size_E)
    if size_E.min(initial=0) < 0 or size_E.sum() > len(token_M):
      raise ValueError(
        f"expert_ffn: sizes from {size_E.min()} and {size_E.sum()} rows in all do not fit"
        f" M={len(token_M)} rows; sizes are not negative and add up to M at most."
      )
