"""Which implementation of an operation runs: the fastest that was measured, else by platform.

`tables/<op>.<device kind>.json` holds measured times of every implementation, and the settings with
which they were reached, a row for a part of the operation (forward, d_lhs, ...), a dtype, a shape
and a load. A new shape is served by the measured one that is nearest, and gets its settings if they
are among those that a tuner would try at the new one. How rows are spread over experts is not known
while a program is traced, so that a choice is by the total over the loads that were measured.

All CPUs have one table, whatever their cores: a guess elsewhere, as the orders and heuristics are.

What raises NotImplementedError while it is traced is passed over, and the next one is asked.
"""

import functools
import importlib
import importlib.util
import json
import math
import pathlib
import re

from pallas_kernels import target

ORDER = {  # without a measurement; what an operation does not have is skipped
  "cpu": ("xla", "composed", "library"),
  "gpu": ("mosaic_gpu", "triton", "ragged", "composed", "xla", "library"),
  "tpu": ("tpu", "ragged", "composed", "xla", "library"),
}
KERNELS = ("mosaic_gpu", "triton", "tpu")  # which the compiler cannot cut over devices
FAR = 6.0  # octaves, over all sizes together, beyond which a measurement says nothing
TABLES = pathlib.Path(__file__).parent / "tables"


def call(op: str, part: str, *args, shape: dict, dtype, implementation: str | None = None):
  """The part of the operation by the first implementation that does it; a name asks that one only.

  `shape` are the sizes that decide, by their letters.
  """
  reasons = {}
  for name in choose(op, part, shape, dtype, implementation):
    function = getattr(importlib.import_module(f"pallas_kernels.{op}.{name}"), part, None)
    if function is None:
      reasons[name] = "it is not written"
      continue
    try:
      return function(*args)
    except NotImplementedError as reason:
      reasons[name] = str(reason)
  told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
  raise ValueError(
    f"{op}: no implementation does {part} for {shape} in {dtype} on {target.platform()} ({told}); "
    "choose another implementation, or None for whichever does."
  )


def choose(
  op: str, part: str, shape: dict, dtype, implementation: str | None = None
) -> tuple[str, ...]:
  """Names of implementations, the best first.

  >>> choose("grouped_matmul", "forward", {"M": 8, "D": 8, "F": 8, "E": 2}, "float32", "ref")
  ('ref',)
  """
  if implementation is not None:
    if not _exists(op, implementation):
      raise ValueError(
        f"{op}: there is no implementation {implementation!r}; choose one of {names(op)}."
      )
    return (implementation,)
  rows = table(op, target.kind())
  known = ORDER[target.platform()]
  fastest = [name for name in _measured(rows, part, shape, str(dtype)) if name in known]
  order = (*fastest, *known)
  cut = target.is_cut()
  usable = lambda name: _exists(op, name) and not (cut and name in KERNELS)
  return tuple(dict.fromkeys(filter(usable, order)))


def names(op: str) -> list[str]:
  """The implementations that an operation has on any platform.

  >>> "xla" in names("grouped_matmul")
  True
  """
  return sorted({name for order in ORDER.values() for name in order if _exists(op, name)} | {"ref"})


def _measured(rows: list[dict], part: str, shape: dict, dtype: str) -> list[str]:
  """Names by their time at the nearest shape that was measured.

  >>> at = {"part": "forward", "dtype": "float32", "shape": {"M": 64, "D": 8}}
  >>> rows = [at | {"load": "even", "ms": {"a": 1.0, "b": 3.0}}]
  >>> rows += [at | {"load": "zipf", "ms": {"a": 5.0, "b": 2.0, "c": 1.0}}]
  >>> _measured(rows, "forward", {"M": 128, "D": 8}, "float32")  # c was not measured everywhere
  ['b', 'a']
  >>> _measured(rows, "forward", {"M": 2**20, "D": 8}, "float32")
  []
  """
  loads = [row["ms"] for row in _nearest(rows, part, shape, dtype)]
  everywhere = set(loads[0]).intersection(*loads) if loads else ()
  return sorted(everywhere, key=lambda name: sum(ms[name] for ms in loads))


def config(op: str, part: str, shape: dict, dtype, name: str, among=None) -> list | None:
  """The settings of an implementation that were fastest at the nearest measured shape, if any.

  Loads that were tuned together have one setting, the best by their total; of loads that were tuned
  apart the first in the table decides, as times of other settings are not kept.

  `among` are those that there are to try at this shape; any other one would be of no use here.
  """
  rows = [row for row in table(op, target.kind()) if name in row.get("config", {})]
  nearest = _nearest(rows, part, shape, str(dtype))
  if not nearest:
    return None
  found = nearest[0]["config"][name]
  return found if among is None or found in [list(setting) for setting in among] else None


def _nearest(rows: list[dict], part: str, shape: dict, dtype: str) -> list[dict]:
  """The rows at the one measured shape that is nearest, if that is near."""
  rows = [row for row in rows if (row["part"], row["dtype"]) == (part, dtype)]
  away = lambda row: sum(abs(math.log2(row["shape"][k] / shape[k])) for k in shape)
  nearest = min(rows, key=away, default=None)
  if nearest is None or away(nearest) > FAR:
    return []
  return [row for row in rows if row["shape"] == nearest["shape"]]


def path(op: str, kind: str) -> pathlib.Path:
  """Where the measurements of an operation on a machine are.

  >>> path("grouped_matmul", "NVIDIA H200").name
  'grouped_matmul.nvidia_h200.json'
  """
  return TABLES / f"{op}.{re.sub('[^a-z0-9]+', '_', kind.lower())}.json"


@functools.cache
def table(op: str, kind: str) -> list[dict]:
  """The rows measured on a machine; none where nobody measured."""
  file = path(op, kind)
  return json.loads(file.read_text())["rows"] if file.exists() else []


def write(op: str, kind: str, rows: list[dict], **about) -> pathlib.Path:
  """Replaces the table of an operation on a machine; `about` says when and with what."""
  file = path(op, kind)
  lines = ",\n  ".join(json.dumps(row) for row in rows)
  head = json.dumps({"op": op, "device": kind, **about}, indent=1)[:-2]
  file.parent.mkdir(exist_ok=True)
  file.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')
  table.cache_clear()
  return file


@functools.cache
def _exists(op: str, name: str) -> bool:
  return importlib.util.find_spec(f"pallas_kernels.{op}.{name}") is not None
