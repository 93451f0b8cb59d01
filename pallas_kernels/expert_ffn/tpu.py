"""Gated expert FFNs in Pallas for TPUs, which read rows from their tokens and sort none in memory.

  gate_up     x -> gate, up and silu(gate) * up * weight in one pass over the rows, which the kernel
              fetches from their tokens itself; both matrices stay in VMEM for all rows of an expert
  down        the matmul down; rows leave as words, so that the next kernel can fetch single ones
  tokens      the K rows of a token, added up in that order: permute/tpu.py
  d_hidden    dy -> the gradients of gate and up, the hidden row again, and that of the weight,
              which falls out of what is there; dy is fetched from the tokens
  d_rows      those of gate and up -> dx in one pass; then `tokens` again
  d_gate_up   the gradients of both matrices in one pass over x, fetched from the tokens
  d_down      that of the matrix down; dy is fetched from the tokens

Matrices that do not fit are cut into columns, and rows are fetched for each part; where that is too
often, they are sorted once after all. A gate weighs the hidden row, not what comes out of it, so
that none is looked up by token. Saved are gate and up before the activation. Rows of nobody are not
read, and what is written there is read by nobody. All passes go by the map of tiles.py, and their
grids are as long as the visits there are.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from pallas_kernels import tpu_rows
from pallas_kernels.expert_ffn import tpu_passes
from pallas_kernels.expert_ffn.tpu_tiles import PARTS, READERS, TURNED, heuristic, sorted_first
from pallas_kernels.permute import tpu as permute
from pallas_kernels.tpu_rows import Fetched


def swiglu(
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, tile=None, interpret=False
):
  """y[n] = sum over the rows of n of gate * (silu(x wg) * (x wu)) wo, with the row's expert.

  `tile` are those of each pass by its name, instead of the heuristic's.
  """
  (E, D, F), (N, K), M = wg_EDF.shape, row_NK.shape, len(token_M)
  if x_ND.dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError(f"x is {x_ND.dtype}; bfloat16 and float32 are done")
  if not N * M * E * D * F:
    raise NotImplementedError("there is nothing to do")
  permute.tile(K, D, x_ND.dtype)  # refuses what does not fit
  tile = tile or {
    name: heuristic(name, sizes(name, M, E, D, F), x_ND.dtype.itemsize) for name in PARTS
  }
  return _swiglu(
    tuple(sorted(tile.items())), interpret, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK,
    size_E,
  )  # fmt: skip


def sizes(name: str, M, E, D, F) -> dict:
  """The sizes of a pass: inputs I are what is summed over, or the rows of a matrix that comes out.

  >>> sizes("d_hidden", 64, 2, 5, 7)
  {'M': 64, 'E': 2, 'I': 5, 'O': 7}
  """
  wide = name in ("gate_up", "d_hidden", "d_gate_up")
  return {"M": M, "E": E, "I": D if wide else F, "O": F if wide else D}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _swiglu(tile, interpret, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  run = functools.partial(_forward, dict(tile), interpret, False)
  args = (x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)
  return sequential_vmap(run)(*args)[0]


def _saving(tile, interpret, *args):
  y_ND, *before = sequential_vmap(functools.partial(_forward, dict(tile), interpret, True))(*args)
  return y_ND, (args, before)


def _gradient(tile, interpret, saved, dy_ND):
  args, before = saved
  run = sequential_vmap(functools.partial(_backward, dict(tile), interpret))
  return *run(*args, *before, dy_ND), None, None, None


_swiglu.defvjp(_saving, _gradient)


def _forward(tile, interpret, saves, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  """(y_ND,), and with `saves` also (g_MF, u_MF)."""
  D, dtype, by_rows = x_ND.shape[1], x_ND.dtype, _passes(tile, interpret, size_E, len(token_M))
  x = _rows(x_ND, token_M, interpret, tile, wg_EDF.shape, "x")

  def hidden(products, _, weight_b1):
    g, u = products
    h = jax.nn.silu(g) * u * weight_b1
    return ([g, u, h] if saves else [h]), None

  outs = [dtype] * (3 if saves else 1)
  *before, h_MF = by_rows("gate_up", x, [wg_EDF, wu_EDF], hidden, outs=outs, weight_M=gate_M)
  (y_MW,) = by_rows("down", [h_MF], [wo_EFD], _as_they_are, outs=["words"])
  return permute.sums(y_MW, row_NK, D, dtype, interpret=interpret), *before


def _backward(
  tile, interpret, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, g_MF, u_MF, dy_ND
):
  """Gradients of the five that have one."""
  D, M, dtype = x_ND.shape[1], len(token_M), x_ND.dtype
  by_rows = _passes(tile, interpret, size_E, M)
  x = _rows(x_ND, token_M, interpret, tile, wg_EDF.shape, "x again")
  dy = _rows(dy_ND, token_M, interpret, tile, wg_EDF.shape, "dy")

  def hidden(products, beside, weight_b1):
    (d,), (g, u) = products, (a.astype(jnp.float32) for a in beside)
    sigmoid = jax.nn.sigmoid(g)
    silu = g * sigmoid
    dh = weight_b1 * d
    dg, du = dh * u * (sigmoid + silu * (1 - sigmoid)), dh * silu
    return [dg, du, silu * u * weight_b1], d * silu * u

  *after, dgate_M = by_rows(
    "d_hidden", dy, [wo_EFD], hidden, outs=[dtype] * 3, beside=[g_MF, u_MF], weight_M=gate_M,
    per_row=True,
  )  # fmt: skip
  dg_MF, du_MF, h_MF = after
  dgate_M = jnp.where(jnp.arange(M) < jnp.sum(size_E), dgate_M, 0)
  matrices = [wg_EDF, wu_EDF]
  (dx_MW,) = by_rows("d_rows", [dg_MF, du_MF], matrices, _as_they_are, outs=["words"])
  dx_ND = permute.sums(dx_MW, row_NK, D, dtype, interpret=interpret)
  by_group = functools.partial(tpu_passes.by_group, size_E=size_E, interpret=interpret)
  dwg_EDF, dwu_EDF = by_group("d_gate_up", x, [dg_MF, du_MF], tile=tile["d_gate_up"])
  (dwo_EFD,) = by_group("d_down", h_MF, [dy], tile=tile["d_down"])
  return dx_ND, dwg_EDF, dwu_EDF, dwo_EFD, dgate_M.astype(gate_M.dtype)


def _rows(x_ND, token_M, interpret, tile, weights: tuple, name):
  """Rows of tokens for the passes that read them: fetched there, or sorted if that is too often."""
  fetched = Fetched(tpu_rows.words(x_ND, interpret), token_M, x_ND.shape[1], x_ND.dtype)
  (E, D, F), M = weights, len(token_M)
  passes = {part: (tile[part], sizes(part, M, E, D, F)) for part in READERS[name]}
  return permute.spread(fetched, interpret) if sorted_first(READERS[name], passes) else fetched


def _passes(tile, interpret, size_E, M):
  """tpu_passes.by_rows by the name of a pass."""

  def by_rows(name, rows, weights, finish, **more):
    how = {"tile": tile[name], "turned": name in TURNED, "interpret": interpret}
    return tpu_passes.by_rows(name, rows, weights, finish, size_E=size_E, M=M, **how, **more)

  return by_rows


def _as_they_are(products, *_):
  return products, None
