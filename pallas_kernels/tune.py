"""Every way to carry out a part of an operation, compiled, checked and timed in turns.

A program is known by (implementation, setting). Those that do not do a shape, do not fit, or give
wrong results are told apart with the reason, and are never timed. From the times follows the table
that choose.py reads: the best setting of each implementation over all loads.

An operation has a file `tune.py` beside its implementations, with

  named(tokens) -> {name: (case, loads)}          cases for a CPU, and layers of published models
  parts(every) -> names                           what is measured by itself
  job(case, part, loads, dtype, every) -> Job     with `every`, all settings there are to try
"""

import concurrent.futures
import functools
import importlib
import os
import typing

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choose, target, timing

# the last one is made of the others
OPS: tuple[str, ...] = ("grouped_matmul", "permute", "routing", "expert_ffn")
TEMPORARY = {"cpu": 2 << 30, "gpu": 24 << 30, "tpu": 4 << 30}  # bytes beyond which nothing is run
MARGIN = 0.03  # by which a setting must be faster than the first one, or it was luck


class Work(typing.NamedTuple):
  """What a part must do: floating-point operations, and bytes read and written once."""

  flops: float
  bytes: float


class Yardstick(typing.NamedTuple):
  """Something to compare with, on arguments of its own or on those of the part.

  `ratio` is its work as a multiple of the part's, per load.
  """

  function: typing.Callable
  arguments: tuple | None = None
  ratio: dict[str, float] = {}  # noqa: RUF012  never written to


class Job(typing.NamedTuple):
  """One part of an operation at one case, and all that is to be known to measure it."""

  op: str
  part: str
  shape: dict[str, int]  # by the letters that a choice depends on
  dtype: str
  arguments: dict[str, tuple]  # load -> arrays
  ways: dict[tuple, typing.Callable]  # (implementation, setting) -> function(*arguments)
  yardsticks: dict[str, Yardstick]
  checked: typing.Callable  # arguments -> function(result) -> what is wrong with it, or None
  work: dict[str, Work]  # load -> work
  beside: typing.Callable = lambda *arguments: {}  # key -> a program that JAX does not compile
  chosen_by: str | None = None  # the part whose times decide, if not this one


class Measured(typing.NamedTuple):
  """One job: load -> (implementation, setting) -> milliseconds; name -> reason."""

  ms: dict[str, dict]
  refused: dict[str, str]


def of(op: str):
  """The file that says what there is to tune of an operation."""
  return importlib.import_module(f"pallas_kernels.{op}.tune")


def ways(op: str, part: str, shape: dict, dtype, settings=None, also=(), bind=None) -> dict:
  """(implementation, setting) -> function, of what a choice is made from and of `also`.

  `settings(name)` is what there is to try, None the implementation's own choice. `bind(function)`
  gives a function of the arguments of a job alone.

  >>> list(ways("grouped_matmul", "forward", {"M": 8, "D": 8, "F": 8, "E": 2}, "float32"))
  [('xla', None)]
  """
  found = {}
  for name in dict.fromkeys((*choose.choose(op, part, shape, dtype), *also)):
    function = getattr(importlib.import_module(f"pallas_kernels.{op}.{name}"), part, None)
    if function is None:
      continue
    for setting in settings(name) if settings else [None]:
      given = {} if setting is None else {"config": setting}
      whole = functools.partial(function, **given)
      found[name, setting] = bind(whole) if bind else whole
  return found


def measure(job: Job, rounds: int) -> Measured:
  """Times of all programs and yardsticks, those first that are right."""
  programs, yardsticks, refused = compiled(job)
  ms = {}
  for load, args in job.arguments.items():
    running, check = {}, job.checked(*args)
    for key, program in programs.items():
      if reason := check(program(*args)):
        refused[label(key)] = reason
      else:
        running[key] = functools.partial(program, *args)
    for name, program in yardsticks.items():
      own = job.yardsticks[name].arguments
      running[name, None] = functools.partial(program, *(args if own is None else own))
    ms[load] = timing.in_turns(running | job.beside(*args), rounds)
  return Measured(ms, refused)


def compiled(job: Job) -> tuple[dict, dict, dict]:
  """(programs, yardsticks, name -> why there is none), several compiled at a time."""
  args = next(iter(job.arguments.values()))
  traced, refused = {}, {}
  wanted = {key: (function, args) for key, function in job.ways.items()}
  for name, (function, own, _) in job.yardsticks.items():
    if (name, None) not in wanted:
      wanted[name, None] = function, args if own is None else own
  for key, (function, given) in wanted.items():
    try:
      traced[key] = jax.jit(function).lower(*given)
    except Exception as reason:
      if not (isinstance(reason, NotImplementedError) or key[0] in job.yardsticks):
        raise  # a mistake of ours; what others refuse ends no measurement
      refused[label(key)] = (str(reason).splitlines() or [type(reason).__name__])[0][:200]
  programs, yardsticks = {}, {}
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    waiting = {key: pool.submit(lowered.compile) for key, lowered in traced.items()}
  for key, result in waiting.items():
    try:
      program = result.result()
      temporary = program.memory_analysis().temp_size_in_bytes
    except (jax.errors.JaxRuntimeError, ValueError) as reason:  # too much shared memory, say
      refused[label(key)] = str(reason).splitlines()[0][:200]
      continue
    if temporary > TEMPORARY[target.platform()]:
      refused[label(key)] = f"needs {temporary >> 20} MiB of temporaries"
    elif key in job.ways:
      programs[key] = program
    else:
      yardsticks[key[0]] = program
  return programs, yardsticks, refused


def label(key: tuple) -> str:
  """How a program is called in messages.

  >>> label(("xla", (64, 32))), label(("ragged", None))
  ('xla [64, 32]', 'ragged')
  """
  name, setting = key
  return name if setting is None else f"{name} {list(setting)}"


def wrong(got, expected: list[tuple]) -> str | None:
  """What is wrong with a result, of which `expected` has (leaf, index, what is there).

  Floating-point numbers may be off by a part of the largest of their leaf, and others not at all.

  >>> wrong(jnp.array([3.0, 4.0]), [(0, 0, np.array(3.0)), (0, 1, np.array(3.0))])
  'wrong by 0.333 of the largest number'
  >>> wrong((jnp.array([3]), jnp.array([4])), [(1, 0, np.array(5))])
  '1 of 1 integers are wrong'
  """
  leaves = jax.tree.leaves(got)
  largest = dict.fromkeys(range(len(leaves)), 0.0)
  for leaf, _, want in expected:
    largest[leaf] = max(largest[leaf], float(np.abs(want).max(initial=0)))
  for leaf, at, want in expected:
    value = leaves[leaf][at]
    if jnp.issubdtype(value.dtype, jnp.integer):
      if off := int(np.sum(np.asarray(value) != want)):
        return f"{off} of {value.size} integers are wrong"
      continue
    off = jnp.abs(value.astype(jnp.float32) - want).max(initial=0)
    error = float(off) / (largest[leaf] or 1.0)
    exact = value.dtype.itemsize > 2 and target.platform() == "cpu"
    if not error <= (1e-4 if exact else 2e-2):
      return f"wrong by {error:.3g} of the largest number"
  return None


def rows(job: Job, measured: Measured) -> list[dict]:
  """The part of the table that follows: a row for each load."""
  times = [{k: t for k, t in ms.items() if k in job.ways} for ms in measured.ms.values()]
  keys = [key for key in times[0] if all(key in ms for ms in times)]
  total = lambda key: sum(ms[key] for ms in times)
  best = {}
  for name in dict.fromkeys(name for name, _ in keys):
    first, *others = [key for key in keys if key[0] == name]
    fastest = min(others, key=total, default=first)
    best[name] = fastest if total(fastest) < (1 - MARGIN) * total(first) else first
  config = {name: list(setting) for name, (_, setting) in best.items() if setting is not None}
  return [
    {"part": job.part, "dtype": job.dtype, "load": load, "shape": job.shape}
    | {"ms": {name: round(ms[key], 4) for name, key in best.items()}, "config": config}
    for load, ms in measured.ms.items()
  ]


def write(op: str, table: list[dict], **about):
  """Puts these rows into the table of this machine; those of other shapes and loads stay."""
  same = lambda row: (row["part"], row["dtype"], row["load"], *row["shape"].values())
  new = {same(row): row for row in table}
  old = {same(row): row for row in choose.table(op, target.kind())}
  return choose.write(op, target.kind(), list((old | new).values()), **about)


def draw(seed: int, shape: tuple, dtype, scale: float = 1.0) -> jax.Array:
  """Normal numbers, the same each time."""
  return _normal(jax.random.key(seed), shape, jnp.dtype(dtype), scale)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key, shape, dtype, scale):
  return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)
