"""Tiles of the expert FFN's passes on TPUs: what fits VMEM and moves least, as for one matmul."""

import math
import typing

from pallas_kernels import target, tpu_rows
from pallas_kernels.grouped_matmul.tpu_tiles import ANY, CHIPS, WORK, Tiles, parts, row_tile


class Part(typing.NamedTuple):
  """What a pass has in VMEM beside each other, in tiles of rows x inputs, rows x outputs, ..."""

  inputs: int  # tiles of rows x inputs
  outputs: int  # tiles of rows x outputs, read or written
  matrices: int  # of inputs x outputs
  sums: int  # float32 tiles of a result, before it is finished
  words: str = ""  # the side that comes or goes as words of single rows: inputs or outputs
  by_group: bool = False  # the matrices are what comes out
  fetched: bool = True  # words come, one row at a time; else they go


PARTS = {
  "gate_up": Part(1, 3, 2, 3, "inputs"),  # x -> gate, up, their product
  "down": Part(1, 1, 1, 2, "outputs", fetched=False),
  "d_hidden": Part(1, 5, 1, 6, "inputs"),  # dy; gate, up -> d gate, d up, the product again
  "d_rows": Part(2, 1, 2, 2, "outputs", fetched=False),  # d gate, d up -> dx
  "d_gate_up": Part(1, 2, 2, 4, "inputs", True),  # x; d gate, d up -> both matrices
  "d_down": Part(1, 1, 1, 2, "outputs", True),
}
READERS = {"x": ("gate_up",), "x again": ("d_gate_up",), "dy": ("d_hidden", "d_down")}
OFTEN = 4  # copies of one row by a pass; if one needs more, its rows are sorted beforehand
TURNED = ("d_hidden", "d_rows")  # the weights as they lie have outputs first


def heuristic(name: str, shape: dict, itemsize: int = 2) -> Tiles:
  """Tiles for the chip of the context mesh, at M rows, E experts, I inputs and O outputs.

  Rows that are fetched one by one come with all their inputs, or with a divisor of whole words.

  >>> heuristic("gate_up", {"M": 8192, "E": 8, "I": 1024, "O": 512})
  Tiles(rows=256, inputs=1024, outputs=512)
  """
  chip, part = CHIPS.get(target.kind(), ANY), PARTS[name]
  rows, cores = row_tile(shape, chip), min(chip.cores, -(-shape["O"] // 128))
  best, least = None, (True, math.inf)
  for inputs in _parts(shape["I"], part.words == "inputs", part.by_group):
    for outputs in _parts(shape["O"], part.words == "outputs", True):
      tile = Tiles(rows, inputs, outputs)
      fits = vmem(name, tile, itemsize) <= chip.vmem and part.matrices * math.prod(tile) <= WORK
      cost = (-(-shape["O"] // outputs) % cores > 0, moved(name, tile, shape))
      if fits and cost < least:
        best, least = tile, cost
  if best is None:
    raise NotImplementedError(f"{name}: no tile of {rows} rows fits the VMEM of {target.kind()}")
  return best


def _parts(size: int, in_words: bool, cut: bool) -> list[int]:
  """Sizes of equal parts; of words all are alike, and the whole of a row unless it may be cut."""
  if not in_words:
    return parts(size)
  unit = tpu_rows.GROUP
  return [p for p in parts(size) if p == size or (cut and size % p == 0 and p % unit == 0)]


def vmem(name: str, tile: Tiles, itemsize: int) -> int:
  """Bytes: what comes and goes twice, as it overlaps the work, and words once more as numbers."""
  part, (rows, inputs, outputs) = PARTS[name], tile
  wide = {"inputs": part.inputs * rows * inputs, "outputs": part.outputs * rows * outputs}
  twice, matrix = sum(wide.values()) * itemsize, inputs * outputs
  if part.words:
    paired = itemsize if getattr(tile, part.words) % tpu_rows.GROUP == 0 else 4
    twice += wide[part.words] * (paired - itemsize / 2)
  sums = part.sums * (matrix if part.by_group else rows * outputs)
  return int(2 * twice + 2 * part.matrices * matrix * itemsize + 4 * sums)


def fetches(name: str, tile: Tiles, shape: dict) -> int:
  """How often a pass fetches a row, or parts of it, that nobody has sorted for it.

  >>> fetches("gate_up", Tiles(256, 4096, 512), {"M": 1, "E": 1, "I": 4096, "O": 14336})
  28
  """
  part = PARTS[name]
  down = -(-shape["I"] // tile.inputs) if part.by_group else 1
  return down * -(-shape["O"] // tile.outputs) if part.fetched else 0


def sorted_first(names: tuple, passes: dict) -> bool:
  """Whether rows that these passes read are to be sorted for them; name -> (tile, sizes)."""
  return max(fetches(name, *passes[name]) for name in names) > OFTEN


def moved(name: str, tile: Tiles, shape: dict) -> int:
  """Numbers between HBM and VMEM for even groups."""
  part, (M, E, inputs, outputs) = PARTS[name], (shape[letter] for letter in "MEIO")
  across, down = -(-outputs // tile.outputs), -(-inputs // tile.inputs)
  matrices = part.matrices * inputs * outputs
  if part.by_group:
    rows = part.inputs * inputs * across + part.outputs * outputs * down
    return M * rows + E * matrices
  visits = M / tile.rows + E if down > 1 else E
  return int(M * (part.inputs * inputs * across + part.outputs * outputs) + visits * matrices)
