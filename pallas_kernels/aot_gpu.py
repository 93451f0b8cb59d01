"""Programs compiled for an H200 by the GPU's own compiler, on a machine that has none.

The result cannot run here. It says whether a kernel is accepted, how much memory a program needs,
which kernels are in it, and what each takes of registers and shared memory. Needs the extra
`aot-gpu`: the CUDA plugin of this very jax, and NVIDIA's assembler.
"""

import contextlib
import functools
import importlib
import os
import pathlib
import re
import subprocess
import tempfile
import typing

import jax
import numpy as np
from jax.experimental import topologies

# The properties that the compiler reads; published ones, or as cudaGetDeviceProperties gives them.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 150754820096
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
device_description_str: "NVIDIA H200"
"""
# as a user compiles, whatever this process does with its own programs
FULL = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
LAUNCH = r"(\S+) grid: \S+ \S+ \S+ threads: \[(\d+), (\d+), (\d+)\]\s+shared_memory: (\d+) bytes"
MOSAIC = r'"mosaic_gpu_v2".*?kernel_hash = "((?:[^"\\]|\\.)*)"'


class Kernel(typing.NamedTuple):
  """What compiler and assembler say of one kernel; `spilled` is bytes stored to memory by a thread.

  `wgmma` counts the instructions by which Hopper's tensor cores read shared memory.
  """

  name: str
  threads: int
  shared: int
  registers: int
  spilled: int
  wgmma: int


def missing() -> str | None:
  """Why nothing can be compiled for a GPU here, if that is so."""
  try:
    importlib.import_module("jax_plugins.xla_cuda13")
  except ImportError:
    return "needs the CUDA plugin of this jax; pip install 'moejax[aot-gpu]'"
  return None


@functools.cache
def device(hosts: int = 1, per_host: int = 1):
  """The first H200 of so many; its `client` has no memory and runs nothing."""
  return topology(hosts, per_host).devices[0]


@functools.cache
def topology(hosts: int, per_host: int):
  """So many hosts with so many H200s each; its `devices` are for the compiler alone."""
  importlib.import_module("jax_plugins.xla_cuda13")  # makes the platform known
  shape = f"1x{hosts}x{per_host}"
  return topologies.get_topology_desc("h200", platform="cuda", target_config=H200, topology=shape)


def mesh(names: tuple[str, ...] = ("data",), sizes: tuple[int, ...] = (1,)) -> jax.sharding.Mesh:
  """A mesh of H200s, eight to a host."""
  count = int(np.prod(sizes))
  devices = topology(-(-count // 8), min(count, 8)).devices[:count]
  types = (jax.sharding.AxisType.Auto,) * len(names)
  return jax.sharding.Mesh(np.array(devices).reshape(sizes), names, axis_types=types)


def compiled(function, *args, **options):
  """`function` compiled for one H200; `args` are arrays, or jax.ShapeDtypeStruct."""
  there = jax.sharding.NamedSharding(mesh(), jax.sharding.PartitionSpec())
  put = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there)
  with jax.sharding.use_abstract_mesh(mesh().abstract_mesh):
    traced = jax.jit(function).trace(*jax.tree.map(put, args))
  with _uncached():
    return traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=FULL | options)


@contextlib.contextmanager
def _uncached():
  """No program goes into JAX's cache on disk: this compiler cannot read it back."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, float("inf"))
  try:
    yield
  finally:
    jax.config.update(name, before)


def kernels(function, *args) -> list[Kernel]:
  """Those of `function` for one H200, as it would launch them.

  Mosaic GPU compiles a kernel once in a process and tells of it then; a later call with the same
  one raises a RuntimeError.
  """
  with tempfile.TemporaryDirectory() as folder:
    with _environment(MOSAIC_GPU_DUMP_TO=folder, MOSAIC_GPU_DUMP_PTX="1"):
      program = compiled(function, *args, xla_dump_to=folder)
    dumps = {path: path.read_text() for path in pathlib.Path(folder).glob("*")}
    assembled = {}
    for path, text in dumps.items():
      if path.suffix == ".ptx" and ".entry" in text:
        assembled |= _assembled(path, text)
  told = sum(name.endswith(".mlir-passes.log") for name in map(str, dumps))
  if told < (launched := len(set(re.findall(MOSAIC, program.as_text() or "")))):
    raise RuntimeError(
      f"{launched - told} of {launched} Mosaic GPU kernels were compiled in this process before; "
      "ask for them first, or at another number of rows."
    )
  found = []
  for path, text in dumps.items():
    if path.name.endswith(".thunk_sequence.txt"):
      for name, x, y, z, shared in re.findall(LAUNCH, text):
        found.append(Kernel(name, int(x) * int(y) * int(z), int(shared), *assembled[name]))
    elif path.name.endswith(".mlir-passes.log"):  # Mosaic GPU launches by itself
      name = re.sub(r"_\d+\.mlir-passes\.log$", "_mosaic_gpu_kernel", path.name)
      (threads,) = re.findall(r"\.maxntid (\d+), 1, 1", dumps[_beside(path, ".ptx")])
      shared = re.search(r"dynamic_shared_memory_size %c(\d+)_i32", text)
      assert shared
      found.append(Kernel(name, int(threads), int(shared[1]), *assembled[name]))
  return found


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
  return path.with_name(path.name.removesuffix(".mlir-passes.log") + suffix)


@contextlib.contextmanager
def _environment(**values: str):
  """These variables, which the compiler reads when it starts, for a while."""
  before = {name: os.environ.get(name) for name in values}
  os.environ.update(values)
  try:
    yield
  finally:
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})


def _assembled(path: pathlib.Path, text: str) -> dict[str, tuple[int, int, int]]:
  """name -> (registers, bytes spilled, wgmma) of the kernels in a file of the GPU's assembly."""
  command = [_ptxas(), "-v", "-arch=sm_90a", str(path), "-o", os.devnull]
  said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
  found = r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
  told = re.findall(found, said, re.DOTALL)
  return {n: (int(used), int(spilled), text.count("wgmma.mma_async")) for n, spilled, used in told}


def _ptxas() -> str:
  """NVIDIA's assembler, which comes with the packages of the extra."""
  nvidia = importlib.import_module("nvidia")
  return str(
    next(path for root in nvidia.__path__ for path in pathlib.Path(root).glob("*/bin/ptxas"))
  )
