"""What there is to tune of the expert FFN, and what it is compared with (see ../tune.py).

`swiglu` is forward and backward, which the implementation is chosen by; `forward` is the first half
of it. An implementation with kernels of its own that have settings names them in PARTS, and they
are tuned one by one. Yardsticks are the composed path and a dense FFN that does as many FLOPs with
the same tokens: K times as wide.
"""

import functools
import importlib
import typing

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choose, tune
from pallas_kernels.expert_ffn import composed, triton
from pallas_kernels.grouped_matmul import cases as matmuls
from pallas_kernels.permute.cases import sorted_tables
from pallas_kernels.tune import Job, Work, Yardstick

OP = "expert_ffn"
WHOLE = ("forward", "swiglu")
REAL = tuple(range(5))  # the arguments that have gradients
MATMULS = {"forward": 3, "swiglu": 9, "up": 2, "down": 1, "d_act": 1, "d_rows": 2, "d_up": 2,
           "d_down": 1}  # fmt: skip


class Case(typing.NamedTuple):
  """N tokens with K choices of E experts of width F."""

  N: int
  K: int
  D: int
  F: int
  E: int


BENCH = {
  "E8": Case(4096, 2, 256, 512, 8),
  "E32": Case(2048, 4, 256, 512, 32),
  "E128": Case(1024, 8, 256, 512, 128),
  "E512": Case(1024, 8, 256, 512, 512),
  "qwen3_30b_a3b/4": Case(1024, 8, 512, 192, 128),
}


def named(tokens: int) -> dict:
  """name -> (case, loads): small ones, and layers of models."""
  small = {name: (case, ("random", "zipf")) for name, case in BENCH.items()}
  models = {n: Case(tokens, m.K, m.D, m.F, m.E) for n, m in matmuls.MODELS.items()}
  return small | {name: (case, ("even", "zipf")) for name, case in models.items()}


def parts(every: bool) -> tuple[str, ...]:
  """Kernels first, so that the whole is measured with what was found for them."""
  kernels = triton.PARTS if every and "triton" in choose.ORDER[tune.target.platform()] else ()
  return (*kernels, *WHOLE)


def job(case: Case, part: str, loads, dtype, every: bool) -> Job:
  """The whole, or a kernel, at a case."""
  (N, K, D, F, E), M = case, case.N * case.K
  shape = {"N": N, "K": K, "M": M, "D": D, "F": F, "E": E}
  arguments, busy = {}, {}
  draw = lambda i, *shape, scale=1.0: tune.draw(i, shape, dtype, scale)
  real = (
    draw(0, N, D), draw(1, E, D, F, scale=D**-0.5), draw(2, E, D, F, scale=D**-0.5),
    draw(3, E, F, D, scale=F**-0.5), tune.draw(4, (M,), jnp.float32),
  )  # fmt: skip
  dy_ND = draw(5, N, D)
  g_MF, u_MF = (draw(6, M, F), draw(7, M, F)) if part in triton.PARTS else (None, None)
  for load in loads:
    size_E = matmuls.sizes(matmuls.Case(M, D, F, E, load))
    busy[load] = int((size_E > 0).sum())
    token_M, row_NK = map(jnp.asarray, sorted_tables(N, K, size_E))
    index = (token_M, row_NK, jnp.asarray(size_E))
    x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M = real
    arguments[load] = {
      "forward": (*real, *index),
      "swiglu": (*real, *index, dy_ND),
      "up": (x_ND, wg_EDF, wu_EDF, token_M, index[2]),
      "down": (g_MF, wo_EFD, gate_M, index[2]),
      "d_act": (dy_ND, wo_EFD, g_MF, u_MF, gate_M, token_M, index[2]),
      "d_rows": (g_MF, u_MF, wg_EDF, wu_EDF, index[2]),
      "d_up": (x_ND, g_MF, u_MF, token_M, index[2]),
      "d_down": (g_MF, dy_ND, token_M, index[2]),
    }[part]
  return Job(
    OP,
    part,
    shape,
    str(jnp.dtype(dtype)),
    arguments,
    _ways(part, shape, dtype, every),
    _yardsticks(part, case, dtype, dy_ND, real[0]),
    lambda *args: functools.partial(tune.wrong, expected=expected(part, *args)),
    {load: work(part, case, busy[load], dtype) for load in loads},
    chosen_by="swiglu" if part == "forward" else None,
  )


def work(part: str, case: Case, busy: int, dtype) -> Work:
  """Matmuls of all rows; weights, tokens, and what a kernel reads and writes of rows, once."""
  (N, _, D, F, E), M = case, case.N * case.K
  tokens, matrix, row = N * D, D * F, M * F
  moved = {
    "forward": 2 * tokens + 3 * busy * matrix,
    "swiglu": 4 * tokens + 3 * (2 * busy + E) * matrix,
    "up": tokens + 2 * busy * matrix + 3 * row,
    "down": row + busy * matrix + M * D,
    "d_act": tokens + busy * matrix + 5 * row,
    "d_rows": 2 * row + 2 * busy * matrix + M * D,
    "d_up": tokens + 2 * row + 2 * E * matrix,
    "d_down": row + tokens + E * matrix,
  }[part]
  return Work(2.0 * MATMULS[part] * M * D * F, float(jnp.dtype(dtype).itemsize * moved))


def both(swiglu, *args):
  """(y, gradients of everything real) for a gradient of y, the last argument."""
  *args, dy_ND = args
  whole = lambda *real: swiglu(*real, *args[len(REAL) :])
  y_ND, back = jax.vjp(whole, *args[: len(REAL)])
  return y_ND, back(dy_ND)


def _ways(part: str, shape: dict, dtype, every: bool) -> dict:
  """(implementation, setting) -> function(*arguments)."""
  if part in WHOLE:
    whole = lambda swiglu: functools.partial(both, swiglu) if part == "swiglu" else swiglu
    return tune.ways(OP, "swiglu", shape, dtype, bind=whole)
  found, itemsize = {}, jnp.dtype(dtype).itemsize
  for name in choose.choose(OP, "swiglu", shape, dtype):
    module = importlib.import_module(f"pallas_kernels.{OP}.{name}")
    if part not in getattr(module, "PARTS", ()):
      continue
    tried = module.candidates(part, shape["M"] // shape["E"], itemsize)
    for setting in tried if every else tried[:1]:
      how = (((part, setting),), False)
      kept = {"kept": True} if part == "up" else {}
      found[name, setting] = functools.partial(getattr(module, part), how, **kept)
  return found


def _yardsticks(part: str, case: Case, dtype, dy_ND, x_ND) -> dict[str, Yardstick]:
  if part not in WHOLE:
    return {}
  N, K, D, F, _ = case
  own = x_ND, *(tune.draw(i, (D, K * F), dtype) for i in (8, 9)), tune.draw(10, (K * F, D), dtype)
  dense = lambda x_ND, wg_DG, wu_DG, wo_GD: (jax.nn.silu(x_ND @ wg_DG) * (x_ND @ wu_DG)) @ wo_GD
  if part == "forward":
    return {"dense": Yardstick(dense, own), "composed": Yardstick(composed.swiglu)}

  def trained(*args):
    y_ND, back = jax.vjp(dense, *args[:-1])
    return y_ND, back(args[-1])

  swiglu = functools.partial(both, composed.swiglu)
  return {"dense": Yardstick(trained, (*own, dy_ND)), "composed": Yardstick(swiglu)}


def expected(part: str, *args) -> list[tuple]:
  """(leaf, index, what a result has there): some experts and tokens, by dense matmuls."""
  with jax.default_matmul_precision("highest"):
    return _of_whole(part, *args) if part in WHOLE else _of_kernel(part, *args)


def _of_whole(part: str, *args) -> list[tuple]:
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M, token_M, row_NK, size_E, *dy = args
  size_E, dy_ND = np.asarray(size_E), dy[0] if dy else x_ND
  last_E = np.cumsum(size_E)
  row_NK, found = np.asarray(row_NK), []

  def of_rows(e: int, row_b):
    """(y_bD, dx_bD, dwg_DF, dwu_DF, dwo_FD, dgate_b) of rows of an expert; M is no row."""
    weights = wg_EDF[e], wu_EDF[e], wo_EFD[e]
    return _dense_rows(x_ND, *weights, gate_M, dy_ND, token_M, jnp.asarray(row_b))

  for n in {0, len(row_NK) // 2, len(row_NK) - 1}:
    experts = np.searchsorted(last_E, row_NK[n], side="right")
    each = [of_rows(e, [row]) for e, row in zip(experts.tolist(), row_NK[n].tolist(), strict=True)]
    found.append((0, n, np.sum([one[0][0] for one in each], axis=0)))
    found.append((1, n, np.sum([one[1][0] for one in each], axis=0)))
  if part == "forward":
    return [one for one in found if one[0] == 0]
  for e in {int(np.argmax(size_E)), int(np.argmin(size_E)), len(size_E) - 1}:
    first, last = int(last_E[e] - size_E[e]), int(last_E[e])
    row_b = first + np.arange(1 << max(last - first - 1, 0).bit_length())  # few programs
    _, _, *weights, dgate_b = of_rows(e, np.where(row_b < last, row_b, len(token_M)))
    found += [(2 + i, e, dw) for i, dw in enumerate(weights)]
    found.append((5, slice(first, last), dgate_b[: last - first]))
  return found


@jax.jit
def _dense_rows(x_ND, wg_DF, wu_DF, wo_FD, gate_M, dy_ND, token_M, row_b):
  """What rows give, and take back, in float32."""
  own_b1 = (row_b < len(token_M))[:, None]
  token_b = token_M.at[row_b].get(mode="fill", fill_value=0)
  take = lambda a_ND: jnp.where(own_b1, a_ND[token_b], 0).astype(jnp.float32)
  gate_b = gate_M.at[row_b].get(mode="fill", fill_value=0)
  wide = [w.astype(jnp.float32) for w in (wg_DF, wu_DF, wo_FD)]

  def ffn(x_bD, wg_DF, wu_DF, wo_FD, gate_b):
    return gate_b[:, None] * ((jax.nn.silu(x_bD @ wg_DF) * (x_bD @ wu_DF)) @ wo_FD)

  y_bD, back = jax.vjp(ffn, take(x_ND), *wide, gate_b)
  return y_bD, *back(take(dy_ND))


def _of_kernel(part: str, *args) -> list[tuple]:
  size_E = np.asarray(args[-1])
  wide, found = lambda a: a.astype(jnp.float32), []
  for e in {int(np.argmax(size_E)), int(np.argmin(size_E)), len(size_E) - 1}:
    first = int(np.cumsum(size_E)[e] - size_E[e])
    last = first + int(size_E[e])
    s = slice(first, last if part in ("d_up", "d_down") else min(last, first + 64))
    if part == "up":
      x_ND, wg_EDF, wu_EDF, token_M, _ = args
      x_bD = wide(x_ND[token_M[s]])
      g_bF, u_bF = x_bD @ wide(wg_EDF[e]), x_bD @ wide(wu_EDF[e])
      wanted = [(s, jax.nn.silu(g_bF) * u_bF), (s, g_bF), (s, u_bF)]
    elif part == "down":
      h_MF, wo_EFD, gate_M, _ = args
      wanted = [(s, gate_M[s, None] * (wide(h_MF[s]) @ wide(wo_EFD[e])))]
    elif part == "d_act":
      dy_ND, wo_EFD, g_MF, u_MF, gate_M, token_M, _ = args
      dh_bF = gate_M[s, None] * (wide(dy_ND[token_M[s]]) @ wide(wo_EFD[e]).T)
      h_bF, back = jax.vjp(lambda g, u: jax.nn.silu(g) * u, wide(g_MF[s]), wide(u_MF[s]))
      wanted = [*((s, d_bF) for d_bF in back(dh_bF)), (s, gate_M[s, None] * h_bF)]
    elif part == "d_rows":
      dg_MF, du_MF, wg_EDF, wu_EDF, _ = args
      up_bD = wide(du_MF[s]) @ wide(wu_EDF[e]).T
      wanted = [(s, wide(dg_MF[s]) @ wide(wg_EDF[e]).T + up_bD)]
    elif part == "d_up":
      x_ND, dg_MF, du_MF, token_M, _ = args
      wanted = [(e, wide(x_ND[token_M[s]]).T @ wide(d_MF[s])) for d_MF in (dg_MF, du_MF)]
    else:
      h_MF, dy_ND, token_M, _ = args
      wanted = [(e, wide(h_MF[s]).T @ wide(dy_ND[token_M[s]]))]
    found += [(leaf, at, want) for leaf, (at, want) in enumerate(wanted)]
  return found
