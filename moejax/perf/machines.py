"""Machines that are not there, by their topology: what a plan is compiled for.

Text:     `v5p:8x8x4`, chips of a TPU slice by the sides of its torus (v4, v5e, v5p, v6e, tpu7x; a
          chip of v4 and tpu7x is two devices), or `h200:4x8`, hosts times GPUs of a host.
Sources:  memory and links: cloud.google.com/tpu/docs, jax-ml.github.io/scaling-book; NVIDIA's data
          sheets. Links are those of one device, one way.
"""

import math
import re
import typing

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies

from moejax.core.plugin import Failed, Wrong
from pallas_kernels import aot, aot_gpu

GB, GiB = 10**9, 2**30


class Chip(typing.NamedTuple):
  """What a device has; bytes, and bytes per second."""

  memory: int
  link: float  # of one link of the torus, or of all links inside a host
  between: float  # hosts; the torus knows none


CHIPS = {
  "v4": Chip(16 * GiB, 22.5 * GB, 22.5 * GB),  # half a chip, which shares its links
  "v5e": Chip(16 * GiB, 45 * GB, 45 * GB),
  "v5p": Chip(95 * GiB, 90 * GB, 90 * GB),
  "v6e": Chip(32 * GiB, 90 * GB, 90 * GB),
  "tpu7x": Chip(96 * GiB, 50 * GB, 50 * GB),
  "h200": Chip(150_754_820_096, 450 * GB, 50 * GB),
}
RESERVED = {"cuda": 0.05}  # for the runtime; the compiler of a TPU keeps its own share


class Machine(typing.NamedTuple):
  """Devices that exist for the compiler alone."""

  text: str
  platform: str  # as lowering names it: tpu or cuda
  chip: Chip
  devices: list
  node: int  # devices behind one border: of a host, of a whole slice

  def room(self) -> int:
    """Bytes of a device that a program may use."""
    return int(self.chip.memory * (1 - RESERVED.get(self.platform, 0)))


def parse(text: str) -> tuple[str, tuple[int, ...]]:
  """The chip and the sides.

  >>> parse("v5p:8x8x4"), parse("h200:4x8")
  (('v5p', (8, 8, 4)), ('h200', (4, 8)))
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if not found or found[1] not in CHIPS:
    raise Wrong(
      f"topology: {text!r} is none; write CHIP:SIDES, such as v5p:8x8x4, with a chip of"
      f" {', '.join(CHIPS)}."
    )
  sides = tuple(map(int, found[2].split("x")))
  if found[1] == "h200" and len(sides) != 2:
    raise Wrong(f"topology: {text!r} has {len(sides)} sides; write h200:HOSTSxGPUS, as h200:4x8.")
  return found[1], sides


def find(text: str) -> Machine:
  """The machine of a topology; Wrong where there is none, Failed where its compiler is missing."""
  name, sides = parse(text)
  gpu = name == "h200"
  reason = aot_gpu.missing() if gpu else aot.missing()
  if reason:
    raise Failed(f"topology: {text} {reason}")
  if gpu:
    devices = aot_gpu.topology(*sides).devices
    return Machine(text, "cuda", CHIPS[name], list(devices), sides[1])
  try:
    with aot.environment():
      devices = topologies.get_topology_desc(text, "tpu").devices
  except Exception as problem:  # the compiler's own, of which there is no public class
    raise Wrong(
      f"topology: the TPU compiler knows no {text} ({str(problem).splitlines()[0][:120]}); use"
      " sides that such a slice comes in, as v5e:4x4 or v5p:2x2x4."
    ) from problem
  return Machine(text, "tpu", CHIPS[name], list(devices), len(devices))


def mesh(machine: Machine, sizes: dict[str, int]) -> jax.sharding.Mesh:
  """A mesh of all its devices: axes on the sides of the torus, or in the order of the hosts."""
  wanted, there = math.prod(sizes.values()), len(machine.devices)
  if wanted != there:
    text = ",".join(f"{axis}:{size}" for axis, size in sizes.items())
    raise Wrong(
      f"mesh: {text!r} has {wanted} devices and {machine.text} has {there}; make the sizes multiply"
      f" to {there}."
    )
  shape = tuple(sizes.values())
  devices = np.array(machine.devices).reshape(shape)
  if machine.platform == "tpu":
    devices = mesh_utils.create_device_mesh(shape, machine.devices, allow_split_physical_axes=True)
  return jax.sharding.Mesh(devices, tuple(sizes), (jax.sharding.AxisType.Auto,) * len(sizes))
