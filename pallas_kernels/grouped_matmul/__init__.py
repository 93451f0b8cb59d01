"""Grouped matmul: each row times the matrix of its expert, by whichever implementation is best.

Three passes are chosen one by one (pallas_kernels/choose.py). An implementation is a file beside
this one that has any of

  forward(x_MD, w_EDF, size_E) -> y_MF
  d_lhs(g_MF, w_EDF, size_E) -> x_MD
  d_rhs(x_MD, g_MF, size_E) -> w_EDF
  quantised(x_MD, w, size_E) -> y_MF    with w, and maybe x, of quantised.Quantised

Rows beyond sum(size_E) come out as zeros and are read into nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from pallas_kernels import choose
from pallas_kernels.grouped_matmul.quantised import Quantised

FILL = {"mode": "fill", "fill_value": 0}


def grouped_matmul(x_MD, w_EDF, size_E, *, implementation: str | None = None) -> jax.Array:
  """y[m] = x[m] @ w[expert of m] for the first sum(size_E) rows; the others are zeros.

  Rows are sorted by expert. Differentiable in x and w, unless they are quantised; vmap makes the
  mapped axis more experts of one call.

  >>> y_MF = grouped_matmul(jnp.ones((3, 1)), jnp.array([[[2.]], [[5.]]]), jnp.array([1, 1]))
  >>> y_MF.ravel().tolist()
  [2.0, 5.0, 0.0]
  """
  _check(x_MD, w_EDF, size_E)
  size_E = jnp.asarray(size_E).astype(jnp.int32)
  if isinstance(w_EDF, Quantised):
    return _quantised(x_MD, w_EDF, size_E, implementation)
  return _grouped(x_MD, w_EDF, size_E, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped(x_MD, w_EDF, size_E, implementation):
  if not x_MD.size * w_EDF.size:
    return jnp.zeros((len(x_MD), w_EDF.shape[2]), x_MD.dtype)
  return _pass("forward", implementation)(x_MD, w_EDF, size_E).astype(x_MD.dtype)


def _saving(x_MD, w_EDF, size_E, implementation):
  return _grouped(x_MD, w_EDF, size_E, implementation), (x_MD, w_EDF, size_E)


def _gradients(implementation, saved, g_MF):
  x_MD, w_EDF, size_E = saved
  if not x_MD.size * w_EDF.size:
    return jnp.zeros_like(x_MD), jnp.zeros_like(w_EDF), None
  dx_MD = _pass("d_lhs", implementation)(g_MF, w_EDF, size_E)
  dw_EDF = _pass("d_rhs", implementation)(x_MD, g_MF, size_E)
  return dx_MD.astype(x_MD.dtype), dw_EDF.astype(w_EDF.dtype), None


_grouped.defvjp(_saving, _gradients)


@functools.cache
def _pass(part: str, implementation: str | None):
  """forward, d_lhs or d_rhs by the implementation of choice, as one call under any vmap."""

  @custom_vmap
  def run(a_MI, b, size_E):
    shape = _sizes(part, a_MI, b, size_E)
    which = {"shape": shape, "dtype": a_MI.dtype, "implementation": implementation}
    return choose.call("grouped_matmul", part, a_MI, b, size_E, **which)

  @run.def_vmap
  def fold(G, mapped, a_GMI, b_G, size_GE):
    """More experts of one call: the rows in use move together, as groups have no gaps."""
    given = lambda a, is_mapped: a if is_mapped else jnp.broadcast_to(a[None], (G, *a.shape))
    a_GMI, b_G, size_GE = map(given, (a_GMI, b_G, size_GE), mapped)
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    M = a_GMI.shape[1]
    used_R = flat(jnp.arange(M)[None] < size_GE.sum(1, keepdims=True))
    place_R = jnp.where(used_R, jnp.cumsum(used_R) - 1, G * M)
    row_R = jnp.zeros(G * M, jnp.int32).at[place_R].set(jnp.arange(G * M), mode="drop")
    if part == "d_rhs":
      dw = run(flat(a_GMI)[row_R], flat(b_G)[row_R], flat(size_GE))
      return dw.reshape(G, -1, *dw.shape[1:]), True
    y_RO = run(flat(a_GMI)[row_R], flat(b_G), flat(size_GE))
    return y_RO.at[place_R].get(**FILL).reshape(G, M, -1), True

  return run


def _sizes(part: str, a_MI, b, size_E) -> dict[str, int]:
  """What a choice depends on, by its letters."""
  width = {"forward": a_MI.shape[1], "d_lhs": b.shape[-2], "d_rhs": a_MI.shape[1]}[part]
  F = a_MI.shape[1] if part == "d_lhs" else b.shape[-1]
  return {"M": len(a_MI), "D": width, "F": F, "E": len(size_E)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _quantised(x_MD, w, size_E, implementation):
  E, D, F = w.shape
  values_MD = x_MD.values if isinstance(x_MD, Quantised) else x_MD
  which = {
    "shape": {"M": len(values_MD), "D": D, "F": F, "E": E},
    "dtype": f"{values_MD.dtype}*{w.values.dtype}",
    "implementation": implementation,
  }
  return choose.call("grouped_matmul", "quantised", x_MD, w, size_E, **which)


def _no_gradient(x_MD, w, size_E, implementation):
  raise ValueError(
    "grouped_matmul: quantised weights have no gradient; differentiate with the weights in "
    "bfloat16 or float32."
  )


_quantised.defvjp(_no_gradient, _no_gradient)


def _check(x_MD, w_EDF, size_E) -> None:
  """Refuses, in one sentence, what no implementation could make sense of."""
  values = lambda a: a.values if isinstance(a, Quantised) else a
  x, w = values(x_MD), values(w_EDF)
  told = f"rows {x.dtype}{list(x.shape)}, weights {w.dtype}{list(w.shape)}"
  if (x.ndim, w.ndim, size_E.ndim) != (2, 3, 1):
    raise ValueError(
      f"grouped_matmul: x_MD, w_EDF, size_E have {x.ndim}, {w.ndim}, {size_E.ndim} axes; "
      "they need 2, 3, 1."
    )
  if x.shape[1] != w_EDF.shape[1]:
    D = w_EDF.shape[1]
    raise ValueError(f"grouped_matmul: {told}: D={x.shape[1]} and D={D} must be equal.")
  if len(size_E) != len(w):
    raise ValueError(f"grouped_matmul: {len(size_E)} sizes for E={len(w)} experts; give one each.")
  if not jnp.issubdtype(size_E.dtype, jnp.integer):
    raise ValueError(f"grouped_matmul: sizes are {size_E.dtype}; count rows in int32.")
  if isinstance(x_MD, Quantised) and not isinstance(w_EDF, Quantised):
    raise ValueError(f"grouped_matmul: {told}: quantised rows need quantised weights.")
  if isinstance(w_EDF, Quantised):
    _check_scales(x_MD, w_EDF)
  elif x.dtype != w.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"grouped_matmul: {told}: give both one floating dtype, or the weights as Quantised."
    )
  if not isinstance(size_E, Tracer):
    size_E = np.asarray(size_E)
    if size_E.min(initial=0) < 0 or size_E.sum() > len(x):
      raise ValueError(
        f"grouped_matmul: sizes from {size_E.min()} and {size_E.sum()} rows in all do not fit "
        f"M={len(x)} rows; sizes are not negative and add up to M at most."
      )


def _check_scales(x_MD, w_EDF: Quantised) -> None:
  E, D, F = w_EDF.shape
  scale = w_EDF.scale.shape
  for what, a in (("weights", w_EDF), ("rows", x_MD)):
    if isinstance(a, Quantised) and a.values.dtype.itemsize != 1:
      raise ValueError(
        f"grouped_matmul: quantised {what} hold {a.values.dtype}; give int8 or an 8-bit float, as"
        " quantised.quantise does."
      )
  if len(scale) != 3 or (scale[0], scale[2]) != (E, F) or not scale[1] or D % scale[1]:
    raise ValueError(
      f"grouped_matmul: scales {list(scale)} of weights {[E, D, F]}; give [E, blocks of D, F]."
    )
  if isinstance(x_MD, Quantised) and x_MD.scale.shape != (len(x_MD.values), 1):
    raise ValueError(
      f"grouped_matmul: scales {list(x_MD.scale.shape)} of {len(x_MD.values)} rows; give [M, 1]."
    )
