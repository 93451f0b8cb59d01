"""Gated expert FFNs from tokens to tokens in Pallas Triton, for GPUs.

Forward, `up` reads rows where their tokens are and has gate, up and activation in one pass, `down`
multiplies each row by its gate while it writes it, and the rows of each token are added up in the
order of its choices. Backward, `d_act` turns the gradient of the tokens into those of both
pre-activations, in their own memory, and into what the gates' gradient is the sum of; `d_rows` adds
both products that make up the gradient of a row; `d_up` has both gradients of weights in one pass
over the rows, and `d_down` the third. Nothing depends on the order in which programs run.

Of the forward pass, the two pre-activations of each row are kept.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import choose
from pallas_kernels import triton_blocks as blocks
from pallas_kernels.expert_ffn.triton_matmuls import by_experts, by_rows
from pallas_kernels.permute import triton as permute
from pallas_kernels.triton_blocks import Config

PARTS = ("up", "down", "d_act", "d_rows", "d_up", "d_down")


def heuristic(part: str, mean: int, itemsize: int) -> Config:
  """What to try first for so many rows per expert; two tiles of sums leave less room than one.

  >>> heuristic("down", 512, 2)
  Config(rows=128, cols=256, depth=64, warps=8, stages=3, band=8)
  >>> heuristic("up", 512, 2).cols, heuristic("up", 8, 2).rows
  (128, 16)
  """
  depth = 128 // itemsize  # a cache line of each row
  if part in ("d_up", "d_down"):
    return Config(128, 128, depth if mean >= 64 else 32, 8, 3)
  cols = 64 if part == "d_act" else 128  # of which more would not fit the registers
  if mean >= 96:
    return Config(128, 256 if part == "down" and itemsize < 4 else cols, depth, 8, 3)
  rows = 64 if mean >= 32 else 32 if mean >= 16 else 16
  return Config(rows, cols, depth, 4, 3)


def candidates(part: str, mean: int, itemsize: int) -> list[Config]:
  """What a tuner tries, the heuristic first.

  >>> len(candidates("up", 512, 2)), len(candidates("d_up", 8, 2))
  (5, 5)
  """
  first, depth = heuristic(part, mean, itemsize), 128 // itemsize
  if part in ("d_up", "d_down"):
    more = [(128, 128, 64, 8, 4), (64, 128, 64, 4, 3), (128, 64, 64, 4, 3), (128, 128, 32, 8, 4)]
  elif mean >= 96:
    more = [(128, 128, depth, 8, 4), (128, 64, depth, 4, 4), (64, 128, depth, 4, 4)]
    more += [(64, 256, depth, 8, 3), (128, 128, depth, 8, 3)]
  else:
    more = [(16, 128, depth, 4, 4), (32, 128, depth, 4, 4), (64, 128, depth, 4, 4)]
  return list(dict.fromkeys([first, *(Config(*c) for c in more)]))


def swiglu(
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, *, configs=None, interpret=False
):
  """y[n] = sum over the rows of n of gate * (silu(x wg) * (x wu)) wo, with the row's expert.

  `configs` name parts and their settings; the others are as measured, or guessed.
  """
  if x_ND.dtype.name not in blocks.DTYPES or not x_ND.size * wg_EDF.size * len(token_M):
    raise NotImplementedError(f"triton: no kernel for rows of {x_ND.dtype}{list(x_ND.shape)}")
  (E, D, F), (N, K), M = wg_EDF.shape, row_NK.shape, len(token_M)
  shape = {"N": N, "K": K, "M": M, "D": D, "F": F, "E": E}
  how = (settings(shape, x_ND.dtype, configs or {}), interpret)
  return _swiglu(how, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E)


def settings(shape: dict, dtype, given: dict) -> tuple[tuple[str, Config], ...]:
  """(part, setting) of all parts: as given, or as measured at a shape like this, or guessed."""
  chosen = {}
  for part in PARTS:
    tried = candidates(part, shape["M"] // shape["E"], jnp.dtype(dtype).itemsize)
    found = choose.config("expert_ffn", part, shape, dtype, "triton", tried)
    chosen[part] = Config(*found) if found else tried[0]
  return tuple((chosen | given).items())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swiglu(how, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  (h_MF,) = up(how, x_ND, wg_EDF, wu_EDF, token_M, size_E, kept=False)
  y_MD = down(how, h_MF, wo_EFD, gate_M, size_E)
  return _to_tokens(how, y_MD, row_NK, size_E)


def _forward(how, x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E):
  h_MF, g_MF, u_MF = up(how, x_ND, wg_EDF, wu_EDF, token_M, size_E, kept=True)
  y_ND = _to_tokens(how, down(how, h_MF, wo_EFD, gate_M, size_E), row_NK, size_E)
  return y_ND, (x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, g_MF, u_MF)


def _backward(how, saved, dy_ND):
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, g_MF, u_MF = saved
  dy_ND = dy_ND.astype(x_ND.dtype)
  dg_MF, du_MF, h_MF, dgate_MB = d_act(how, dy_ND, wo_EFD, g_MF, u_MF, gate_M, token_M, size_E)
  dwo_EFD = d_down(how, h_MF, dy_ND, token_M, size_E)
  dwg_EDF, dwu_EDF = d_up(how, x_ND, dg_MF, du_MF, token_M, size_E)
  dx_MD = d_rows(how, dg_MF, du_MF, wg_EDF, wu_EDF, size_E)
  dx_ND = _to_tokens(how, dx_MD, row_NK, size_E)
  used_M = jnp.arange(len(token_M)) < size_E.sum()
  dgate_M = jnp.where(used_M, dgate_MB.sum(1), 0).astype(gate_M.dtype)
  return dx_ND, dwg_EDF, dwu_EDF, dwo_EFD, dgate_M, None, None, None


_swiglu.defvjp(_forward, _backward)


def up(how, x_ND, wg_EDF, wu_EDF, token_M, size_E, *, kept: bool):
  """(h_MF,) of silu(x wg) * (x wu), and if they are kept (h_MF, g_MF, u_MF) with what it is of."""

  def finish(g, u):
    h = g * jax.nn.sigmoid(g) * u
    return (h, g, u) if kept else (h,)

  outs, how = [x_ND.dtype] * (3 if kept else 1), _how("up", how)
  weights, rows = (wg_EDF, wu_EDF), {"token_M": token_M, "M": len(token_M)}
  return by_rows("up", (x_ND,), weights, size_E, finish, outs, **rows, **how)


def down(how, h_MF, wo_EFD, gate_M, size_E):
  """gate * h wo."""
  finish = lambda y, gate: (gate * y,)
  outs, rows = [h_MF.dtype], {"beside": (gate_M,), "M": len(h_MF)}
  how = _how("down", how)
  return by_rows("down", (h_MF,), (wo_EFD,), size_E, finish, outs, **rows, **how)[0]


def d_act(how, dy_ND, wo_EFD, g_MF, u_MF, gate_M, token_M, size_E):
  """(dg_MF, du_MF, gate * h, dgate_MB): over g and u, and parts of the gates' gradient."""

  def finish(dh, g, u, gate):
    sigmoid = jax.nn.sigmoid(g)
    silu = g * sigmoid
    dgate = jnp.sum(dh * silu * u, axis=1)[:, None]
    dh = gate * dh
    return dh * u * (sigmoid + silu * (1 - sigmoid)), dh * silu, gate * silu * u, dgate

  outs, how = [g_MF.dtype] * 3 + [None], _how("d_act", how)
  rows = {"token_M": token_M, "M": len(token_M), "turned": True}
  beside = {"beside": (g_MF, u_MF, gate_M), "reused": {0: 0, 1: 1}}
  return by_rows("d_act", (dy_ND,), (wo_EFD,), size_E, finish, outs, **rows, **beside, **how)


def d_rows(how, dg_MF, du_MF, wg_EDF, wu_EDF, size_E):
  """dg wg.T + du wu.T."""
  how, lefts, rights = _how("d_rows", how), (dg_MF, du_MF), (wg_EDF, wu_EDF)
  rows = {"M": len(dg_MF), "turned": True}
  outs = [dg_MF.dtype]
  return by_rows("d_rows", lefts, rights, size_E, lambda dx: (dx,), outs, **rows, **how)[0]


def d_up(how, x_ND, dg_MF, du_MF, token_M, size_E):
  """(dwg_EDF, dwu_EDF)."""
  how = {"dtype": x_ND.dtype, "gathers_left": True} | _how("d_up", how)
  return by_experts("d_up", x_ND, (dg_MF, du_MF), size_E, token_M, **how)


def d_down(how, h_MF, dy_ND, token_M, size_E):
  """dwo_EFD, of h times gate."""
  how = {"dtype": h_MF.dtype, "gathers_left": False} | _how("d_down", how)
  return by_experts("d_down", h_MF, (dy_ND,), size_E, token_M, **how)[0]


def _how(part: str, how) -> dict:
  configs, interpret = how
  return {"config": dict(configs)[part], "interpret": interpret}


def _to_tokens(how, y_MD, row_NK, size_E):
  """The sum of the rows of a token, of which those of no expert were never written."""
  M = len(y_MD)
  row_NK = jnp.where(row_NK < size_E.sum(), row_NK, M)
  return permute.tokens(y_MD, None, row_NK, interpret=how[1])
