"""Tiles of the grouped matmul on TPUs: what fits VMEM and moves least between it and HBM."""

import math
import typing

from pallas_kernels import target

MIB = 1 << 20


class Chip(typing.NamedTuple):
  """What of a generation decides on tiles; by how JAX names its devices."""

  vmem: int  # bytes that a kernel may fill
  cores: int = 1  # that share a device, and its columns
  edge: int = 128  # of the matrix unit


CHIPS = {
  "TPU v4": Chip(12 * MIB, 2),
  "TPU v5 lite": Chip(96 * MIB),
  "TPU v5": Chip(48 * MIB, 2),
  "TPU v6 lite": Chip(96 * MIB, 1, 256),
  "TPU7x": Chip(48 * MIB, 1, 256),
}
ANY = Chip(12 * MIB)
WORK = 1 << 30  # products of one tile, which the compiler writes out: more take minutes to compile


class Tiles(typing.NamedTuple):
  """A tile: rows, and how much of the two axes of a matrix."""

  rows: int
  inputs: int  # what forward and d_lhs sum over; D of d_rhs
  outputs: int


def limit() -> int:
  """Bytes of VMEM to ask for: what tiles fill, and a quarter more for what the compiler adds."""
  return CHIPS.get(target.kind(), ANY).vmem * 5 // 4


def heuristic(part: str, shape: dict, itemsize: int = 2, weight: int | None = None) -> Tiles:
  """Tiles for the chip of the context mesh; sizes in bytes of numbers, and of those of the weights.

  A group ends within a tile, so that about half a tile per group is done in vain: rows follow the
  mean. The rest follows from VMEM: what fits and moves least, which is all inputs at once wherever
  there is room. Of two cores that share a device each has columns of its own, if there are enough.

  >>> heuristic("forward", {"M": 8192, "E": 8, "I": 1024, "O": 512})
  Tiles(rows=256, inputs=1024, outputs=512)
  """
  chip = CHIPS.get(target.kind(), ANY)
  rows, outputs = row_tile(shape, chip), shape["O"]
  cores = min(chip.cores, -(-outputs // 128))
  best, least = None, (True, math.inf)
  for at_once in [shape["I"]] if weight else parts(shape["I"]):
    for out in parts(outputs):
      tile = Tiles(rows, at_once, out)
      fits = vmem(part, tile, itemsize, weight) <= chip.vmem and math.prod(tile) <= WORK
      cost = (-(-outputs // out) % cores > 0, moved(part, tile, shape))
      if fits and cost < least:
        best, least = tile, cost
  if best is None:
    raise NotImplementedError(f"no tile of {rows} rows fits the VMEM of {target.kind()}")
  return best


def row_tile(shape: dict, chip: Chip) -> int:
  """Rows of a tile: the edge of the matrix unit, or twice that if groups are long.

  >>> row_tile({"M": 8192, "E": 8}, ANY), row_tile({"M": 20, "E": 8}, ANY)
  (256, 32)
  """
  rows = chip.edge
  if rows < 256 and 4 * rows * shape["E"] < shape["M"]:
    rows *= 2
  return min(rows, -(-shape["M"] // 16) * 16)


def parts(size: int) -> list[int]:
  """Sizes of equal parts, in whole lanes, from the whole to what one matrix unit takes.

  >>> parts(768), parts(5)
  ([768, 384, 256, 128], [5])
  """
  parts = {-(-size // n // 128) * 128 for n in range(1, size // 128 + 1)}
  return [size, *sorted((part for part in parts if part < size), reverse=True)]


def vmem(part: str, tile: Tiles, itemsize: int, weight: int | None = None) -> int:
  """Bytes of VMEM: what is fetched and written twice, as it overlaps the work, and the sums."""
  rows, inputs, outputs = tile
  sums = inputs * outputs if part == "d_rhs" else rows * outputs
  twice = itemsize * rows * (inputs + outputs) + (weight or itemsize) * inputs * outputs
  wide = itemsize * inputs * outputs if weight else 0
  return 2 * twice + 8 * sums + wide


def moved(part: str, tile: Tiles, shape: dict) -> int:
  """Numbers between HBM and VMEM for even groups."""
  M, E, inputs, outputs = (shape[letter] for letter in "MEIO")
  across, down = -(-outputs // tile.outputs), -(-inputs // tile.inputs)
  if part == "d_rhs":
    return M * (inputs * across + outputs * down) + E * inputs * outputs
  # matrices are fetched once for a group, or, in parts, for each of its tiles
  visits = M / tile.rows + E if down > 1 else E
  return int(M * (inputs * across + outputs) + visits * inputs * outputs)
