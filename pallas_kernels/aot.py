"""Programs compiled for a TPU by the TPU's own compiler, on a machine that has none.

The result cannot run here. It says whether kernels are accepted and fit their memory, what a
program needs, what the compiler expects it to cost, and which kernels are in it. Needs the extra
`aot`; the choice of kernels follows the context mesh, which is that of the chip.
"""

import contextlib
import importlib.util
import os
import re
import typing

import jax
import numpy as np
from jax.experimental import topologies

CHIPS = {"v5e": "v5e:{}x{}", "v5p": "v5p:{}x{}x1", "v6e": "v6e:{}x{}", "tpu7x": "tpu7x:{}x{}x1"}


class Compiled(typing.NamedTuple):
  """What the compiler says of a program, for each device; estimates, none of them measured."""

  text: str  # of the program, as the compiler was given it
  kernels: list[str]  # names of the Pallas kernels in it
  temporary: int  # bytes beyond arguments and results
  flops: float
  seconds: float  # if nothing but the slowest unit limited it


def missing() -> str | None:
  """Why nothing can be compiled for a TPU here, if that is so.

  >>> missing() in (None, "needs the TPU compiler; pip install 'moejax[aot]'")
  True
  """
  found = importlib.util.find_spec("libtpu") is not None
  return None if found else "needs the TPU compiler; pip install 'moejax[aot]'"


def mesh(chip: str, names: tuple[str, ...] = ("data",), sizes: tuple[int, ...] = (1,)):
  """A mesh of chips of one generation: v5e, v5p, v6e, tpu7x."""
  count = int(np.prod(sizes))
  a = 1 if count == 1 else 2
  while count > a * a:
    a *= 2
  with environment():
    devices = topologies.get_topology_desc(CHIPS[chip].format(a, a), "tpu").devices[:count]
  types = (jax.sharding.AxisType.Auto,) * len(names)
  return jax.sharding.Mesh(np.array(devices).reshape(sizes), names, axis_types=types)


@contextlib.contextmanager
def environment():
  """What the TPU's compiler reads when it is loaded and first used.

  Flags are those of this machine's compiler, and at one that it lacks it ends the process.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask for its neighbours
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip that only one may hold
  flags = os.environ.pop("XLA_FLAGS", None)
  try:
    yield
  finally:
    if flags is not None:
      os.environ["XLA_FLAGS"] = flags


def compile(function, *args, mesh: jax.sharding.Mesh) -> Compiled:
  """Compiles a function of arrays or jax.ShapeDtypeStructs, which are whole on each device."""
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), args)
  with jax.set_mesh(mesh), environment():
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
    program = lowered.compile()
  text, cost, memory = lowered.as_text(), program.cost_analysis(), program.memory_analysis()
  assert cost and memory  # this compiler tells both; a program that only moves has no flops
  return Compiled(
    text,
    re.findall(r'kernel_name = "(\w+)"', text),
    memory.temp_size_in_bytes,
    cost.get("flops", 0.0),
    cost["optimal_seconds"],
  )
