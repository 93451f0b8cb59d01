"""Gated expert FFNs from tokens to tokens in plain XLA, for CPUs: one batch, and windows.

The batch is as long as an even load would fill: C rows of every expert, gathered into [E, C, D], so
that all matmuls are batched ones which use every core and read each weight once, in place. Rows of
busier experts than that go through a loop of windows, whose trip count follows size_E. Empty slots
of the batch are rows of zeros, in x and in the cotangent alike, so that nothing else needs a mask.

One custom gradient spans both matmuls: only the two pre-activations of the batch are saved, the
gradient of the gates falls out of d_act * act, and both ways between rows and tokens are gathers.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.xla import times_transposed

FILL = {"mode": "fill", "fill_value": 0}


@jax.custom_vjp
def swiglu(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  """As expert_ffn.swiglu says."""
  return _forward(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)[0]


def _forward(x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  row_EC, slot_M = _slots(size_E, len(token_M))
  slot_NK = slot_M.at[row_NK].get(mode="fill", fill_value=row_EC.size)
  x_ECD = _take(x_ND, token_M, row_EC)
  g_ECF, u_ECF = _matmul("ECD,EDF->ECF", x_ECD, wg_EDF), _matmul("ECD,EDF->ECF", x_ECD, wu_EDF)
  y_ECD = _matmul("ECF,EFD->ECD", jax.nn.silu(g_ECF) * u_ECF, wo_EFD)
  gate_NK = gate_M.at[row_NK].get(**FILL)
  y_ND = _to_tokens(y_ECD, slot_NK, gate_NK)

  def window(e, row_b, y_ND):
    x_bD = _take(x_ND, token_M, row_b)
    h_bF = jax.nn.silu(x_bD @ wg_EDF[e]) * (x_bD @ wu_EDF[e])
    gate_b1 = gate_M.at[row_b].get(**FILL)[:, None]
    return _add(y_ND, token_M, row_b, gate_b1 * _wide(h_bF @ wo_EFD[e]))

  y_ND = _overflow(size_E, row_EC, len(token_M), window, y_ND).astype(x_ND.dtype)
  inputs = (x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)
  return y_ND, (inputs, row_EC, slot_M, slot_NK, g_ECF, u_ECF)


def _backward(saved, dy_ND):
  inputs, row_EC, slot_M, slot_NK, g_ECF, u_ECF = saved
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, _, size_E = inputs
  x_ECD, dy_ECD = _take(x_ND, token_M, row_EC), _take(dy_ND, token_M, row_EC)
  gate_EC1 = gate_M.at[row_EC].get(**FILL)[..., None].astype(x_ND.dtype)
  back = lambda a_ECI, w_EOI: times_transposed(a_ECI, w_EOI).astype(a_ECI.dtype)
  dh_ECF = back(dy_ECD, wo_EFD)  # of y without its gate
  h_ECF, dg_ECF, du_ECF = _activation(g_ECF, u_ECF, gate_EC1 * dh_ECF)
  dgate_M = jnp.sum(_wide(dh_ECF * h_ECF), -1).ravel().at[slot_M].get(**FILL)
  dx_ECD = back(dg_ECF, wg_EDF) + back(du_ECF, wu_EDF)
  dx_ND = _to_tokens(dx_ECD, slot_NK)
  dw = (
    _sums("ECD,ECF->EDF", x_ECD, dg_ECF),
    _sums("ECD,ECF->EDF", x_ECD, du_ECF),
    _sums("ECF,ECD->EFD", gate_EC1 * h_ECF, dy_ECD),
  )

  def window(e, row_b, grads):
    dx_ND, dgate_M, (dwg_EDF, dwu_EDF, dwo_EFD) = grads
    x_bD, dy_bD = _take(x_ND, token_M, row_b), _take(dy_ND, token_M, row_b)
    gate_b1 = gate_M.at[row_b].get(**FILL)[:, None].astype(x_ND.dtype)
    dh_bF = dy_bD @ wo_EFD[e].T
    h_bF, dg_bF, du_bF = _activation(x_bD @ wg_EDF[e], x_bD @ wu_EDF[e], gate_b1 * dh_bF)
    dgate_M = dgate_M.at[row_b].set(jnp.sum(_wide(dh_bF * h_bF), -1), mode="drop")
    dx_bD = dg_bF @ wg_EDF[e].T + du_bF @ wu_EDF[e].T
    dw = (
      dwg_EDF.at[e].add(_sums("bD,bF->DF", x_bD, dg_bF)),
      dwu_EDF.at[e].add(_sums("bD,bF->DF", x_bD, du_bF)),
      dwo_EFD.at[e].add(_sums("bF,bD->FD", gate_b1 * h_bF, dy_bD)),
    )
    return _add(dx_ND, token_M, row_b, _wide(dx_bD)), dgate_M, dw

  dx_ND, dgate_M, dw = _overflow(size_E, row_EC, len(token_M), window, (dx_ND, dgate_M, dw))
  dw = (d.astype(w.dtype) for d, w in zip(dw, (wg_EDF, wu_EDF, wo_EFD), strict=True))
  return dx_ND.astype(x_ND.dtype), *dw, dgate_M.astype(gate_M.dtype), None, None, None


swiglu.defvjp(_forward, _backward)


def _slots(size_E, M):
  """(row_EC, slot_M): the row in each slot of the batch, the slot of each row; else M and E * C.

  >>> row_EC, slot_M = _slots(jnp.array([1, 4]), 6)
  >>> row_EC[:, :4].tolist(), slot_M.tolist()
  ([[0, 6, 6, 6], [1, 2, 3, 4]], [0, 8, 9, 10, 11, 16])
  """
  E = len(size_E)
  C = -(-M // E // 8) * 8  # an even load, in whole vectors
  first_E = jnp.cumsum(size_E) - size_E
  place_EC = jnp.arange(C)[None]
  row_EC = jnp.where(place_EC < size_E[:, None], first_E[:, None] + place_EC, M)
  expert_M = jnp.repeat(jnp.arange(E), size_E, total_repeat_length=M)
  place_M = jnp.arange(M) - first_E[expert_M]
  held_M = (place_M < C) & (jnp.arange(M) < size_E.sum())
  return row_EC, jnp.where(held_M, expert_M * C + place_M, E * C)


def _overflow(size_E, row_EC, M, body, value):
  """body(expert, row_b, value) over the rows that have no slot, b at a time; M fills the last."""
  C = row_EC.shape[1]
  b = min(64, C)
  windows_E = -(-jnp.maximum(size_E - C, 0) // b)
  done_E, end_E = jnp.cumsum(windows_E), jnp.cumsum(size_E)

  def window(i, value):
    e = jnp.sum(done_E <= i)
    start = end_E[e] - size_E[e] + C + (i - done_E[e] + windows_E[e]) * b
    row_b = start + jnp.arange(b)
    return body(e, jnp.where(row_b < end_E[e], row_b, M), value)

  return lax.fori_loop(0, done_E[-1], window, value)


def _take(x_ND, token_M, row):
  """The tokens of rows; zeros where the row is M."""
  return x_ND.at[token_M.at[row].get(mode="fill", fill_value=len(x_ND))].get(**FILL)


def _add(sum_ND, token_M, row_b, more_bD):
  """A few rows added to their tokens."""
  token_b = token_M.at[row_b].get(mode="fill", fill_value=len(sum_ND))
  return sum_ND.at[token_b].add(more_bD, mode="drop")


def _to_tokens(y_ECD, slot_NK, gate_NK=None):
  """Sum over k of the slots of a token, times their gates: K gathers, each a multiply-add."""
  y_SD, total_ND = y_ECD.reshape(-1, y_ECD.shape[-1]), 0
  for k in range(slot_NK.shape[1]):
    y_ND = _wide(y_SD.at[slot_NK[:, k]].get(**FILL))
    total_ND += y_ND if gate_NK is None else gate_NK[:, k, None] * y_ND
  return total_ND


def _activation(g, u, dh):
  """(h, dg, du) of h = silu(g) * u."""
  sigmoid = jax.nn.sigmoid(g)
  silu = g * sigmoid
  return silu * u, dh * u * (sigmoid + silu * (1 - sigmoid)), dh * silu


def _sums(equation, a, b):
  """A matmul whose sums are kept, in float32 at least."""
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _matmul(equation, a, b):
  return _sums(equation, a, b).astype(a.dtype)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
