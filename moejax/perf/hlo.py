"""What a compiled program moves between devices, read from the text of its HLO.

`compiled.as_text()` of any platform is the program of one device. A loop's collectives count as
often as it runs, those of a `cond` are the branch that moves the most. Bytes are those of the
larger side on one device, padding of tiles left out: what an all-gather yields, what a
reduce-scatter, all-reduce or all-to-all reads. So the closed forms of papers compare exactly.
"""

import itertools
import math
import re
import typing

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip
CALLS = re.compile(
  r"(?:calls|to_apply|body|true_computation|false_computation|branch_computations"
  r"|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


class Collective(typing.NamedTuple):
  """One instruction of a program, with all its executions."""

  kind: str  # one of KINDS
  bytes: float  # of the larger side on one device, times the executions
  size: int  # devices of a group
  groups: tuple[tuple[int, ...], ...]  # of a permute: pairs of source and target
  times: int  # executions
  known: bool  # whether `times` is; a loop of unknown length counts once
  dtype: str  # as HLO writes it: f32, bf16, ...
  where: str  # the operation of the traced function


class Instruction(typing.NamedTuple):
  """A line of a computation."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes


def collectives(text: str, branch=max) -> list[Collective]:
  """The collectives of a program in their order; branch=min takes the cheapest of a `cond`."""
  bodies, entry = computations(text)
  everyone = tuple(range(_number(r"num_partitions=(\d+)", text, 1)))
  return _walk(entry, bodies, everyone, branch)


def totals(found: list[Collective]) -> dict[str, float]:
  """Bytes by kind.

  >>> totals([Collective("all-gather", 8.0, 2, ((0, 1),), 1, True, "f32", "")] * 2)
  {'all-gather': 16.0}
  """
  out: dict[str, float] = {}
  for one in found:
    out[one.kind] = out.get(one.kind, 0.0) + one.bytes
  return out


def axes(groups, sizes: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes that the groups run over; `sizes` is mesh.shape, in its order.

  >>> axes(((0, 4), (1, 5), (2, 6), (3, 7)), {"data": 2, "expert": 4})
  ('data',)
  """
  varying: set[str] = set()
  for group in groups:
    places = [_coordinates(device, sizes) for device in group]
    varying |= {name for name in sizes if len({place[name] for place in places}) > 1}
  return tuple(name for name in sizes if name in varying)


def sent(found: list[Collective], node_of) -> tuple[float, float]:
  """(bytes inside nodes, bytes between nodes) that all devices send; node_of(device) is a number.

  Each part is sent straight to each device that reads it. What a network adds or saves on the way
  is not in it: a ring that passes an all-gather on may cross a border less often.
  """
  inside, between = 0.0, 0.0
  for one in found:
    if one.kind == "collective-permute":
      part, pairs = one.bytes, one.groups
    else:
      part = one.bytes / one.size * (2 if one.kind == "all-reduce" else 1)
      pairs = [pair for group in one.groups for pair in itertools.permutations(group, 2)]
    for source, target in pairs:
      if node_of(source) != node_of(target):
        between += part
      elif source != target:
        inside += part
  return inside, between


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Every computation by name, and the name of the entry."""
  bodies: dict[str, list[Instruction]] = {}
  entry, now = "", None
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if head:
      now = bodies.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif now is not None and " = " in line:
      now.append(_instruction(line))
  return bodies, entry


def _walk(name, bodies, everyone, branch, times=1, known=True) -> list[Collective]:
  """The collectives of a computation and of all that it calls."""
  found = []
  inside = bodies[name]
  for one in inside:
    kind = one.opcode.removesuffix("-start")
    below = re.findall(r"[\w.\-]+", " ".join(CALLS.findall(one.rest)))

    def deeper(of, count=1, sure=True):
      return _walk(of, bodies, everyone, branch, times * count, known and sure)

    if kind in KINDS:
      found.append(_collective(one, kind, everyone, times, known))
    elif one.opcode == "while":
      count = trips(one, inside, bodies)
      found += deeper(below[0], count or 1, count is not None)
    elif one.opcode == "conditional":
      found += branch(map(deeper, below), key=lambda part: sum(c.bytes for c in part))
    else:
      found += [c for of in below for c in deeper(of)]
  if "all-reduce-scatter" in name:  # a TPU's reduce-scatter: the sum of all and a slice, fused
    found = [c._replace(kind="reduce-scatter") if c.kind == "all-reduce" else c for c in found]
  return found


def _collective(one, kind, everyone, times, known):
  """The instruction as a Collective; the start of an asynchronous one has (operands, results)."""
  parts = split(one.shape)
  if one.opcode.endswith("-start") and kind != "all-reduce":
    parts = split(parts[1])
  groups = _groups(one.rest, everyone)
  size = 2 if kind == "collective-permute" else len(groups[0])
  more = size if kind == "reduce-scatter" else 1
  dtype = "+".join(sorted({part.partition("[")[0] for part in parts}))
  where = re.search(r'op_name="([^"]*)"', one.rest)
  moved = float(sum(map(bytes_of, parts)) * more * times)
  return Collective(kind, moved, size, groups, times, known, dtype, where[1] if where else "")


def trips(one, around, bodies) -> int | None:
  """How often a loop runs: as the compiler says, or as a counter from a constant to another."""
  said = re.search(r'known_trip_count":?\{"n":"(\d+)"', one.rest)
  if said:
    return int(said[1])
  asked = re.search(r"condition=%?([\w.\-]+)", one.rest)
  test = {i.name: i for i in bodies[asked[1] if asked else ""]}
  last = list(test.values())[-1]
  if last.opcode != "compare" or "direction=LT" not in last.rest:
    return None
  counter, limit = (test.get(name) for name in last.operands)
  outer = {i.name: i for i in around}
  start = outer.get(one.operands[0])
  if counter is None or limit is None or start is None or start.opcode != "tuple":
    return None
  index = re.search(r"index=(\d+)", counter.rest)
  first = index and _constant(outer.get(start.operands[int(index[1])]), outer)
  last = _constant(limit, test)
  return None if first is None or last is None else last - first


def _constant(one, around) -> int | None:
  """The whole number behind copies."""
  while one is not None and one.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    one = around.get(one.operands[0])
  word = one.operands[0] if one is not None and one.opcode == "constant" else ""
  return int(word) if re.fullmatch(r"-?\d+", word) else None


def _instruction(line: str) -> Instruction:
  left, right = line.split(" = ", 1)
  if right.startswith("("):
    end = _closing(right, 0) + 1
  else:
    end = right.index(" ")
  shape, right = right[:end], right[end:].lstrip()
  opening = right.index("(")
  closing = _closing(right, opening)
  operands = tuple(re.findall(r"%?([\w.\-]+)(?=,|$)", right[opening + 1 : closing]))
  return Instruction(
    left.split()[-1].lstrip("%"), shape, right[:opening], operands, right[closing + 1 :]
  )


def _closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in "({[") - (text[i] in ")}]")
    if depth == 0:
      return i
  raise ValueError(f"no closing bracket in {text[start : start + 60]!r}.")


def split(shape: str) -> list[str]:
  """The elements of a tuple, or the shape itself.

  >>> split("((f32[2]{0}), f32[2,3]{1,0:T(8,128)}, u32[])")
  ['(f32[2]{0})', 'f32[2,3]{1,0:T(8,128)}', 'u32[]']
  """
  if not shape.startswith("("):
    return [shape]
  inner, depth, parts = re.sub(r"/\*.*?\*/", "", shape[1:-1]), 0, [""]
  for letter in inner:
    depth += (letter in "({[") - (letter in ")}]")
    if letter == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def bytes_of(shape: str) -> float:
  """
  >>> bytes_of("bf16[2,3]{1,0:T(8,128)(2,1)}"), bytes_of("pred[]"), bytes_of("f8e4m3fn[4]")
  (12.0, 1.0, 4.0)
  """
  dtype, _, sizes = shape.partition("[")
  bits = re.search(r"\d+", dtype)
  each = int(bits[0]) / 8 if bits else 1.0
  return each * math.prod(int(size) for size in re.findall(r"\d+", sizes.partition("]")[0]))


def _groups(rest: str, everyone: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
  """Replica groups as written out, or as an iota: [groups,size]<=[sizes]T(order).

  >>> _groups("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", ())
  ((0, 4), (1, 5), (2, 6), (3, 7))
  >>> _groups("source_target_pairs={{0,4},{4,0}}", ())
  ((0, 4), (4, 0))
  >>> _groups("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", ())
  ((0, 2), (1, 3))
  """
  words = r"(?:replica_groups|source_target_pairs)="
  written = re.search(words + r"\{((?:\{[\d,]*\},?)*)\}", rest)
  if written:
    groups = [tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", written[1])]
    return tuple(groups) or (everyone,)
  iota = re.search(words + r"\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest)
  if iota:
    flat, size = _iota(iota[3]), int(iota[2])
    return tuple(tuple(flat[i : i + size]) for i in range(0, len(flat), size))
  named = re.search(words + r"mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", rest)
  if not named:
    raise ValueError(f"replica groups of an unknown form: {rest[:160]!r}.")
  groups = _by_name(named[1], named[3])
  if not named[2]:
    return groups
  devices = _iota(named[2])
  return tuple(tuple(devices[i] for i in group) for group in groups)


def _iota(text: str) -> list[int]:
  """Numbers that count through sizes, read in another order of the axes.

  >>> _iota("[2,3]T(1,0)"), _iota("[4]")
  ([0, 3, 1, 4, 2, 5], [0, 1, 2, 3])
  """
  written, _, turned = text.partition("T")
  numbers = lambda word: [int(n) for n in re.findall(r"\d+", word)]
  sizes = numbers(written)
  order = numbers(turned) or list(range(len(sizes)))
  strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
  return [
    sum(place * strides[axis] for place, axis in zip(places, order, strict=True))
    for places in itertools.product(*(range(sizes[axis]) for axis in order))
  ]


def _by_name(mesh: str, over: str) -> tuple[tuple[int, ...], ...]:
  """The groups over some axes of a mesh; a part of an axis is written 'a':(before)size.

  >>> _by_name("'a'=4,'b'=2", "'a':(2)2,'b'")
  ((0, 1, 2, 3), (4, 5, 6, 7))
  """
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  names, shape = list(sizes), list(sizes.values())
  strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
  steps = []  # of the group, the last the fastest
  for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over):
    whole, stride = sizes[name], strides[names.index(name)]
    part = int(size) if size else whole
    inner = whole // (int(before) * part) if size else 1
    steps.append((part, stride * inner))
  places = lambda steps: itertools.product(*(range(part) for part, _ in steps))
  offsets = [
    sum(i * stride for i, (_, stride) in zip(at, steps, strict=True)) for at in places(steps)
  ]
  covered, groups = set(), []
  for first in range(math.prod(shape)):
    if first not in covered:
      group = tuple(first + offset for offset in offsets)
      covered.update(group)
      groups.append(group)
  return tuple(groups)


def _coordinates(device: int, sizes: dict[str, int]) -> dict[str, int]:
  out = {}
  for name in reversed(sizes):
    device, out[name] = divmod(device, sizes[name])
  return out


def _number(pattern: str, text: str, default: int) -> int:
  found = re.search(pattern, text)
  return int(found[1]) if found else default
