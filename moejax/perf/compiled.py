"""A program that is compiled and never run: its text, its memory, its largest buffers.

The text is the compiler's own dump: that of a TPU's program cannot always be read back from the
executable. Bytes are those of one device.
"""

import pathlib
import re
import tempfile
import time
import typing

import jax

from moejax.perf import hlo
from pallas_kernels import aot

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
USED = r"Used [\d.]+\w of [\d.]+\w hbm|memory required.*?exceeds available HBM \([\d.]+\w\)"


class Full(Exception):
  """The program needs more memory than a device has."""


class Compiled(typing.NamedTuple):
  """What the compiler says of one device."""

  text: str  # the optimised program
  memory: dict[str, int]  # bytes: arguments, temporary, host, peak
  largest: list[tuple[int, str]]  # (bytes, shape) of the largest values, the largest first
  seconds: float  # that it took
  processor: float  # seconds of all cores


def compile(lowered, name: str) -> Compiled:
  """Compiles what `jax.jit(...).trace(...).lower(...)` gave; `name` is that of the function."""
  with tempfile.TemporaryDirectory() as folder:
    start, worked = time.perf_counter(), time.process_time()
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    try:
      with aot.environment():
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as problem:
      said = re.search(USED, str(problem))
      if not said:
        raise
      raise Full(said[0]) from problem
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    dump = lambda end: next(pathlib.Path(folder).glob(f"*jit_{name}*{end}")).read_text()
    text, report = dump("after_optimizations.txt"), dump("-memory-usage-report.txt")
  said: typing.Any = program.memory_analysis()
  memory = {
    "arguments": said.argument_size_in_bytes,
    "temporary": said.temp_size_in_bytes,
    "host": said.host_argument_size_in_bytes + said.host_temp_size_in_bytes,
    "peak": peak(said),
  }
  return Compiled(text, memory, largest(report), seconds, worked)


def peak(said) -> int:
  """The most that a device holds at once: its own bytes, where the compiler counts those of the
  host among them, too. Temporaries of the host may not all be there at that time: they are left in,
  as far as all arguments, results and temporaries of the device are not less."""
  results = lambda where: (
    getattr(said, f"{where}output_size_in_bytes") - getattr(said, f"{where}alias_size_in_bytes")
  )
  away = said.host_argument_size_in_bytes + results("host_")
  all_here = said.argument_size_in_bytes + results("") + said.temp_size_in_bytes
  return min(said.peak_memory_in_bytes - away, all_here) if away else said.peak_memory_in_bytes


def largest(report: str, count: int = 12) -> list[tuple[int, str]]:
  """The largest buffers of the compiler's memory report, each with the largest shape in it.

  >>> largest("  8.00MiB( 12%);  8.00MiB;  0;  2; s32[2048], 2×bf16[4,1024,1024]")
  [(8388608, 'bf16[4,1024,1024]')]
  """
  rows = []
  for line in report.splitlines():
    row = re.match(r"\s+\S+\(\s*\d+%\);\s+([\d.]+)(B|KiB|MiB|GiB);\s+\d+;\s+\d+; (.*)", line)
    if row:
      shapes = re.findall(r"(?<![(\w])(\w+\[[\d,]*\])", row[3])
      widest = max(shapes, key=hlo.bytes_of, default="")
      rows.append((round(float(row[1]) * UNITS[row[2]]), widest))
  rows.sort(key=lambda row: -row[0])
  return rows[:count]


def kept(text: str) -> int:
  """Bytes that loops over layers hand from the forward to the backward pass.

  They are what a loop of the forward pass writes for every one of its steps. Runs of a single layer
  have no loop, and theirs are among the temporaries.
  """
  bodies, _ = hlo.computations(text)
  total = 0
  for computation in bodies.values():
    for one in computation:
      if one.opcode != "while" or "jvp(" not in one.rest or "transpose(" in one.rest:
        continue
      times = hlo.trips(one, computation, bodies)
      body = re.search(r"body=%?([\w.\-]+)", one.rest)
      if times is None or body is None:
        continue
      total += _written(bodies[body[1]], one.shape, times)
  return total


def _written(body, shape: str, times: int) -> int:
  """Bytes of the loop's values with `times` parts that its body does not pass on as they came."""
  by_name = {one.name: one for one in body}
  root, parts, total = body[-1], hlo.split(shape), 0
  for place, (name, part) in enumerate(zip(root.operands, parts, strict=True)):
    one = by_name.get(name)
    same = (
      one and one.opcode == "get-tuple-element" and f"index={place}" in one.rest.split(",")[0:2]
    )
    sizes = re.match(r"\w+\[(\d+),", part)
    if sizes and int(sizes[1]) == times and not same:
      total += int(hlo.bytes_of(part))
  return total
