"""Every way to carry out a pass of the grouped matmul, compiled, checked and timed in turns.

A program is known by (implementation, setting). Those that do not do a shape, do not fit, or give
wrong results are told apart with the reason, and are never timed. From the times follows the table
that choose.py reads: the best setting of each implementation over all loads.
"""

import concurrent.futures
import functools
import importlib
import importlib.util
import os
import typing

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choose, target, timing
from pallas_kernels.grouped_matmul import cases, mosaic_gpu, triton, xla

PARTS = ("forward", "d_lhs", "d_rhs")
SETTING = {"xla": "windows", "triton": "config", "mosaic_gpu": "config"}  # as arguments are called
OURS = ("xla", "triton", "mosaic_gpu", "tpu")
TEMPORARY = {"cpu": 2 << 30, "gpu": 24 << 30, "tpu": 4 << 30}  # bytes beyond which nothing is run


class Measured(typing.NamedTuple):
  """One pass at one shape: load -> (implementation, setting) -> milliseconds; name -> reason."""

  ms: dict[str, dict]
  refused: dict[str, str]


def measure(case: cases.Case, part: str, loads, dtype, rounds: int, every: bool) -> Measured:
  """Times of all implementations and yardsticks; with `every`, of each of their settings."""
  arrays = drawn(part, case, dtype)
  programs, refused = _compiled(functions(part, case, dtype, every), part, case, arrays)
  ms = {}
  for load in loads:
    size_E = jnp.asarray(cases.sizes(case._replace(load=load)))
    args, running = (*arrays, size_E), {}
    right = expected(part, *args)
    for key, program in programs.items():
      if key[0] not in YARDSTICKS and (reason := wrong(program(*args), right)):
        refused[label(key)] = reason
      else:
        running[key] = functools.partial(program, *args)
    running |= _torch(part, *args)
    ms[load] = timing.in_turns(running, rounds)
  return Measured(ms, refused)


def drawn(part: str, case: cases.Case, dtype) -> tuple[jax.Array, jax.Array]:
  """The two arrays that a pass is given."""
  shapes = {"x": (case.M, case.D), "w": (case.E, case.D, case.F), "g": (case.M, case.F)}
  names = {"forward": "xw", "d_lhs": "gw", "d_rhs": "xg"}[part]
  draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
  keys = jax.random.split(jax.random.key(0))
  return draw(keys[0], shapes[names[0]], dtype), draw(keys[1], shapes[names[1]], dtype)


def functions(part: str, case: cases.Case, dtype, every: bool) -> dict:
  """(implementation, setting) -> function(a, b, size_E)."""
  shape = {letter: getattr(case, letter) for letter in "MDFE"}
  found = {}
  for name in dict.fromkeys((*choose.choose("grouped_matmul", part, shape, dtype), "ragged")):
    function = getattr(importlib.import_module(f"pallas_kernels.grouped_matmul.{name}"), part, None)
    if function is None:
      continue
    for setting in settings(name, part, case, dtype) if every else [None]:
      given = {} if setting is None else {SETTING[name]: setting}
      found[name, setting] = functools.partial(function, **given)
  for name, make in YARDSTICKS.items():
    if (function := make(part)) is not None:
      found[name, None] = function
  return found


def absent() -> list[str]:
  """The packages of yardsticks that this machine lacks.

  >>> absent()  # those of GPUs are not missed elsewhere
  []
  """
  wanted = ("tokamax", "torch") if target.platform() == "gpu" else ()
  return [name for name in wanted if importlib.util.find_spec(name) is None]


def label(key: tuple) -> str:
  """How a program is called in messages.

  >>> label(("xla", (64, 32))), label(("ragged", None))
  ('xla [64, 32]', 'ragged')
  """
  name, setting = key
  return name if setting is None else f"{name} {list(setting)}"


def settings(name: str, part: str, case: cases.Case, dtype) -> list:
  """What there is to try; None is the implementation's own choice.

  >>> settings("ragged", "forward", cases.TEST["even"], "float32")
  [None]
  """
  mean, out = case.M // case.E, case.D if part == "d_lhs" else case.F
  if name == "xla":
    return xla.candidates(case.M, case.E)
  if name == "triton":
    return triton.candidates(part, mean, jnp.dtype(dtype).itemsize)
  return mosaic_gpu.candidates(part, mean, out) if name == "mosaic_gpu" else [None]


def _compiled(functions: dict, part, case, arrays) -> tuple[dict, dict]:
  """(programs, name -> why there is none), several compiled at a time."""
  args = (*arrays, jax.ShapeDtypeStruct((case.E,), jnp.int32))
  traced, refused, programs = {}, {}, {}
  for key, function in functions.items():
    try:
      traced[key] = jax.jit(function).lower(*args)
    except Exception as reason:
      if not (isinstance(reason, NotImplementedError) or key[0] in YARDSTICKS):
        raise  # a mistake of ours; what others refuse ends no measurement
      refused[label(key)] = (str(reason).splitlines() or [type(reason).__name__])[0][:200]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    waiting = {key: pool.submit(lowered.compile) for key, lowered in traced.items()}
  for key, result in waiting.items():
    try:
      program = result.result()
      temporary = program.memory_analysis().temp_size_in_bytes
      if temporary > TEMPORARY[target.platform()]:
        refused[label(key)] = f"needs {temporary >> 20} MiB of temporaries"
      else:
        programs[key] = program
    except (jax.errors.JaxRuntimeError, ValueError) as reason:  # too much shared memory, say
      refused[label(key)] = str(reason).splitlines()[0][:200]
  return programs, refused


def expected(part: str, a, b, size_E) -> list[tuple]:
  """(index, what a result has there): a few rows, or matrices, from dense matmuls."""
  last_E, size_E = np.cumsum(size_E), np.asarray(size_E)
  used = int(last_E[-1])
  matmul = functools.partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
  if part == "d_rhs":
    own = lambda e: slice(int(last_E[e] - size_E[e]), int(last_E[e]))
    some = {int(np.argmax(size_E)), int(np.argmin(size_E)), len(size_E) - 1}
    return [(e, matmul(a[own(e)].T, b[own(e)])) for e in some]
  found: list[tuple] = [(slice(used, None), jnp.zeros((1, 1)))]
  for m in {0, used // 3, used - 1, *(int(last) - 1 for last in last_E[:3])} - {-1}:
    if m < used:
      w = b[int(np.searchsorted(last_E, m, side="right"))]
      found.append((m, matmul(a[m], w.T if part == "d_lhs" else w)))
  return found


def wrong(got, expected: list[tuple]) -> str | None:
  """What is wrong with a result.

  >>> wrong(jnp.array([[3.0], [4.0]]), [(0, jnp.array([3.0])), (1, jnp.array([3.0]))])
  'wrong by 0.333 of the largest number'
  """
  largest = max(float(jnp.abs(want).max(initial=0)) for _, want in expected) or 1.0
  off = lambda at, want: float(jnp.abs(got[at].astype(jnp.float32) - want).max(initial=0))
  error = max(off(at, want) for at, want in expected) / largest
  exact = got.dtype.itemsize > 2 and target.platform() == "cpu"
  return (
    None if error <= (1e-4 if exact else 2e-2) else f"wrong by {error:.3g} of the largest number"
  )


def rows(case: cases.Case, part: str, dtype, measured: Measured) -> list[dict]:
  """The part of the table that follows: a row for each load."""
  keys = functools.reduce(lambda a, b: a & b, (ms.keys() for ms in measured.ms.values()))
  total = lambda key: sum(ms[key] for ms in measured.ms.values())
  names = dict.fromkeys(name for name, _ in keys if name in (*OURS, "ragged"))
  best = {name: min((key for key in keys if key[0] == name), key=total) for name in names}
  config = {name: key[1] for name, key in best.items() if key[1] is not None}
  return [
    {"part": part, "dtype": str(jnp.dtype(dtype)), "load": load}
    | {"shape": {letter: getattr(case, letter) for letter in "MDFE"}}
    | {"ms": {name: round(ms[key], 4) for name, key in best.items()}, "config": config}
    for load, ms in measured.ms.items()
  ]


def write(table: list[dict], **about):
  """Puts these rows into the table of this machine; those of other shapes and loads stay."""
  same = lambda row: (row["part"], row["dtype"], row["load"], *row["shape"].values())
  new = {same(row): row for row in table}
  old = {same(row): row for row in choose.table("grouped_matmul", target.kind())}
  return choose.write("grouped_matmul", target.kind(), list((old | new).values()), **about)


def _dense(part: str):
  """One matmul of as many FLOPs, for all rows."""
  if part == "forward":
    return lambda x_MD, w_EDF, size_E: x_MD @ w_EDF[0]
  if part == "d_lhs":
    return lambda g_MF, w_EDF, size_E: g_MF @ w_EDF[0].T
  return lambda x_MD, g_MF, size_E: x_MD.T @ g_MF


def _pass_of(forward, part: str):
  """A pass of a function that has only gradients by jax.vjp."""
  if part == "forward":
    return forward
  if part == "d_lhs":

    def d_lhs(g_MF, w_EDF, size_E):
      like_MD = jnp.zeros((len(g_MF), w_EDF.shape[1]), g_MF.dtype)
      return jax.vjp(lambda x_MD: forward(x_MD, w_EDF, size_E), like_MD)[1](g_MF)[0]

    return d_lhs

  def d_rhs(x_MD, g_MF, size_E):
    like_EDF = jnp.zeros((len(size_E), x_MD.shape[1], g_MF.shape[1]), x_MD.dtype)
    return jax.vjp(lambda w_EDF: forward(x_MD, w_EDF, size_E), like_EDF)[1](g_MF)[0]

  return d_rhs


def _tokamax(implementation: str, part: str):
  try:
    tokamax = importlib.import_module("tokamax")
  except ImportError:
    return None
  if target.platform() != "gpu":
    return None
  forward = lambda x, w, size_E: tokamax.ragged_dot(x, w, size_E, implementation=implementation)
  return _pass_of(forward, part)


def _megablox(part: str):
  if target.platform() != "tpu":
    return None
  megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox")
  return _pass_of(lambda x, w, size_E: megablox.gmm(x, w, size_E, x.dtype), part)


def _torch(part: str, a, b, size_E) -> dict:
  """PyTorch's grouped matmul on the same arrays, where both are on a GPU; forward only."""
  if target.platform() != "gpu" or part != "forward" or a.dtype != jnp.bfloat16:
    return {}
  try:
    torch = importlib.import_module("torch")
  except ImportError:
    return {}
  if not torch.cuda.is_available() or not hasattr(torch, "_grouped_mm"):
    return {}
  x, w = torch.from_dlpack(a), torch.from_dlpack(b)
  last = torch.from_dlpack(jnp.cumsum(size_E, dtype=jnp.int32))

  def run():
    torch._grouped_mm(x, w, offs=last)
    torch.cuda.synchronize()

  try:
    run()
  except RuntimeError:  # a shape or a GPU that it does not do
    return {}
  return {("torch", None): run}


YARDSTICKS = {
  "dense": _dense,
  "tokamax mosaic": functools.partial(_tokamax, "mosaic"),
  "tokamax triton": functools.partial(_tokamax, "triton"),
  "megablox": _megablox,
}
