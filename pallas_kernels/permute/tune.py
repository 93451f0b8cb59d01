"""What there is to tune of rows and tokens, and what it is compared with (see ../tune.py).

Yardsticks are what anyone would write: `take` of rows, `scatter`-add to tokens, and its gradient.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import tune
from pallas_kernels.grouped_matmul import cases as matmuls
from pallas_kernels.permute import cases, triton
from pallas_kernels.tune import Job, Work, Yardstick

OP = "permute"
PARTS = ("rows", "tokens", "d_tokens")


class Case(typing.NamedTuple):
  """N tokens of width D with K choices of E experts."""

  N: int
  K: int
  D: int
  E: int


BENCH = {
  "E8": Case(4096, 2, 256, 8),
  "E128": Case(1024, 8, 256, 128),
  "qwen3_30b_a3b/4": Case(1024, 8, 512, 128),
}


def named(tokens: int) -> dict:
  """name -> (case, loads): small ones, and layers of models."""
  small = {name: (case, ("random",)) for name, case in BENCH.items()}
  models = {name: Case(tokens, m.K, m.D, m.E) for name, m in matmuls.MODELS.items()}
  return small | {name: (case, ("zipf",)) for name, case in models.items()}


def parts(every: bool) -> tuple[str, ...]:
  """Both ways, and the gradient of the one with gates."""
  return PARTS


def job(case: Case, part: str, loads, dtype, every: bool) -> Job:
  """A part at a case."""
  N, K, D, E = case
  M, shape = N * K, {"N": N, "K": K, "M": N * K, "D": D}
  x_ND, y_MD, gate_M = (tune.draw(0, (N, D), dtype), tune.draw(1, (M, D), dtype),
                        tune.draw(2, (M,), jnp.float32))  # fmt: skip
  arguments, own = {}, None
  for load in loads:
    size_E = matmuls.sizes(matmuls.Case(M, D, 1, E, load))
    token_M, row_NK = map(jnp.asarray, cases.sorted_tables(N, K, size_E))
    arguments[load] = {
      "rows": (x_ND, token_M),
      "tokens": (y_MD, gate_M, row_NK),
      "d_tokens": (x_ND, y_MD, gate_M, token_M),
    }[part]
    own = (x_ND, y_MD, gate_M, token_M) if part == "tokens" else None
  tried = lambda name: triton.candidates() if name == "triton" else [None]
  return Job(
    OP,
    part,
    shape,
    str(jnp.dtype(dtype)),
    arguments,
    tune.ways(OP, part, shape, dtype, tried if every else None),
    _yardsticks(part, own),
    lambda *args: functools.partial(tune.wrong, expected=expected(part, *args)),
    dict.fromkeys(loads, work(part, case, dtype)),
  )


def work(part: str, case: Case, dtype) -> Work:
  """Every row and token once, tables and gates."""
  M, wide = case.N * case.K, case.D * jnp.dtype(dtype).itemsize
  rows = 2 * M if part == "d_tokens" else M
  numbers = {"rows": M, "tokens": 2 * M, "d_tokens": 3 * M}[part]
  return Work(0.0, (rows + case.N) * wide + 4 * numbers)


def expected(part: str, *args) -> list[tuple]:
  """(leaf, index, what a result has there): a few rows, or tokens, added up in float64."""
  wide = lambda a: np.asarray(a, np.float64)
  some = lambda length: sorted({0, length // 3, length // 2, length - 1})
  if part == "rows":
    x_ND, token_M = args
    return [(0, m, wide(x_ND[token_M[m]])) for m in some(len(token_M))]
  if part == "tokens":
    y_MD, gate_M, row_NK = args
    at = lambda n: np.asarray(row_NK[n])
    return [(0, n, wide(gate_M[at(n)]) @ wide(y_MD[at(n)])) for n in some(len(row_NK))]
  dy_ND, y_MD, gate_M, token_M = args
  found: list[tuple] = []
  for m in some(len(token_M)):
    dy_D = wide(dy_ND[token_M[m]])
    found += [(0, m, wide(gate_M[m]) * dy_D), (1, m, wide(y_MD[m]) @ dy_D)]
  return found


def _yardsticks(part: str, own: tuple | None) -> dict[str, Yardstick]:
  if part == "rows":
    return {"take": Yardstick(lambda x_ND, token_M: jnp.take(x_ND, token_M, axis=0))}
  if part == "tokens":
    scatter = lambda x_ND, y_MD, gate_M, token_M: _scatter(y_MD, gate_M, token_M, len(x_ND))
    return {"scatter": Yardstick(scatter, own)}

  def gradient(dy_ND, y_MD, gate_M, token_M):
    scatter = lambda y_MD, gate_M: _scatter(y_MD, gate_M, token_M, len(dy_ND))
    return jax.vjp(scatter, y_MD, gate_M)[1](dy_ND)

  return {"scatter": Yardstick(gradient)}


def _scatter(y_MD, gate_M, token_M, N: int):
  rows_MD = (gate_M[:, None] * y_MD).astype(y_MD.dtype)
  return jnp.zeros((N, y_MD.shape[1]), y_MD.dtype).at[token_M].add(rows_MD)
