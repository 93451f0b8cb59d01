"""Seconds that collectives take at the rate of their links, if nothing else were in their way.

Source: jax-ml.github.io/scaling-book (a torus with wrapped sides, both directions used); ring
        formulas on a switch. No start-up costs, no overlap: a bound to rank layouts by.
"""

import math

from moejax.perf import hlo, machines


def seconds(found: list[hlo.Collective], machine: machines.Machine) -> float:
  """The sum over all collectives of a step, as if one came after the other."""
  return sum(_one(c.kind, c.bytes, c.groups, machine) for c in found)


def _one(kind: str, size: float, groups, machine) -> float:
  """Bytes of the larger side on a device, as perf/hlo.py counts them."""
  p = 2 if kind == "collective-permute" else len(groups[0])
  if p == 1:
    return 0.0
  twice = 2 if kind == "all-reduce" else 1
  if machine.platform == "tpu":
    _, sides = machines.parse(machine.text)
    if kind == "collective-permute":
      return size / machine.chip.link
    if "all-to-all" in kind:  # every part travels a quarter of the longest side on average
      return size * min(p, max(sides)) / (8 * machine.chip.link)
    return twice * size / (2 * machine.chip.link)
  nodes = max(len({device // machine.node for device in group}) for group in groups)
  if kind == "collective-permute":
    return size / (machine.chip.between if nodes > 1 else machine.chip.link)
  inside = twice * size * (p - 1) / p / machine.chip.link
  if nodes == 1:
    return inside
  return max(inside, twice * size * (nodes - 1) / nodes / _rails(kind, p, nodes, machine))


def _rails(kind: str, p: int, nodes: int, machine) -> float:
  """Bytes per second a device moves over the border of its host.

  Gathers and sums cross it once for all members of a host; an all-to-all has no such saving.
  """
  together = 1 if "all-to-all" in kind else math.ceil(p / nodes)
  return machine.chip.between * together
