"""What a compiled program computes while it sends: matmuls between the start of an exchange and
its end.

`text` is that of a scheduled program, whose instructions stand in the order in which they are
issued. An exchange that blocks has neither a start nor an end, and nothing lies under it. What the
order saves in seconds depends on links, and is not in the text.
"""

import re
import typing

from moejax.perf import hlo


class Exchange(typing.NamedTuple):
  """One collective in the order of the program."""

  where: str  # the operation of the traced function
  asynchronous: bool
  under: tuple[str, ...]  # matmuls that are issued while it is on its way, by operation


def exchanges(text: str, kind: str = "all-to-all") -> list[Exchange]:
  """The collectives of a kind, loops and branches that have one read where they stand."""
  if "is_scheduled=true" not in text:
    raise ValueError("schedule: the program is not scheduled, so its order says nothing.")
  bodies, entry = hlo.computations(text)
  found: list[Exchange] = []
  for name in _order(entry, bodies):
    found += _of_one(bodies[name], bodies, kind)
  return found


def _order(name, bodies) -> list[str]:
  """Computations in which an instruction is issued by itself: the entry, bodies of loops."""
  names = [name]
  for one in bodies[name]:
    if one.opcode in ("while", "conditional", "call"):
      names += [deeper for below in _below(one) for deeper in _order(below, bodies)]
  return names


def _of_one(body, bodies, kind) -> list[Exchange]:
  """Those of one computation."""
  found, running = [], {}  # place in `found` by the name of the start
  for one in body:
    if one.opcode == kind:
      found.append(Exchange(_where(one), False, ()))
    elif _starts(one, bodies, kind):
      running[one.name] = len(found)
      found.append(Exchange(_where(one), True, ()))
    elif one.opcode.endswith(("-done", "-update")) and one.operands[0] in running:
      place = running.pop(one.operands[0])
      if one.opcode.endswith("-update"):  # a name for what is still on its way
        running[one.name] = place
    else:
      for place in running.values():
        inside = found[place].under + _matmuls(one, bodies)
        found[place] = found[place]._replace(under=inside)
  return found


def _starts(one, bodies, kind) -> bool:
  """As GPUs write it, or wrapped as TPUs do."""
  if one.opcode != "async-start":
    return one.opcode == f"{kind}-start"
  return any(inner.opcode == kind for below in _below(one) for inner in bodies[below])


def _matmuls(one, bodies) -> tuple[str, ...]:
  """Those of an instruction and of what it calls."""
  if one.opcode in ("dot", "convolution"):
    return (_where(one),)
  return tuple(m for below in _below(one) for i in bodies[below] for m in _matmuls(i, bodies))


def _below(one) -> list[str]:
  return re.findall(r"[\w.\-]+", " ".join(hlo.CALLS.findall(one.rest)))


def _where(one) -> str:
  said = re.search(r'op_name="([^"]*)"', one.rest)
  return said[1] if said else one.name
