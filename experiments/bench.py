"""A benchmark by its name: a table, and the same numbers as JSON.

python -m experiments.bench NAME [--out=DIR] [--compare=OLD.json] [options of the benchmark]

NAME                a file of experiments/benches, whose docstring says what it measures
--out=DIR           where NAME.json is written (default: runs/bench)
--compare=OLD.json  say what became worse by more than a tenth since then; exit code 1 if anything
--allocator=system  keep the C library's own settings (default: tuned for large arrays)
"""

import datetime
import importlib
import json
import os
import pathlib
import pkgutil
import platform
import sys

from rich.console import Console
from rich.table import Table

from experiments import benches, command, runtime
from moejax.core import plugin
from moejax.core.plugin import Wrong

ALARM = 0.1  # a number that is worse by this part of itself


def main(argv: list[str]) -> int:
  """Measures, prints, writes."""
  names = sorted(m.name for m in pkgutil.iter_modules(benches.__path__))
  if not argv or {"-h", "--help"} & set(argv):
    print(f"{__doc__}\nBenchmarks: {', '.join(names)}.")
    return 0 if argv else 2
  name, *words = argv
  if name not in names:
    raise Wrong(f"bench: there is no {name!r}. {plugin.hint(name, names)}")
  bench = importlib.import_module(f"experiments.benches.{name}")
  shared = {"out": "runs/bench", "compare": "", "allocator": "tuned"}
  options, rest = command.split(words, **shared, **bench.OPTIONS)
  if rest:
    raise Wrong(f"bench: {rest[0]!r} is no option; write options as --name=value.")
  old = read(options["compare"]) if options["compare"] else None
  runtime.prepare(allocator=options["allocator"] == "tuned")
  rows = []
  for row in bench.run(options):
    rows.append(row)
    print(", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)
  show(name, rows)
  path = pathlib.Path(options["out"]) / f"{name}.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({"bench": name, **where(), "rows": rows}, indent=1) + "\n")
  print(f"written to {path}")
  worse = compare(old["rows"], rows, bench.BETTER) if old else []
  for line in worse:
    print(f"worse: {line}")
  return 1 if worse else 0


def show(title: str, rows: list[dict]) -> None:
  """The rows as a table; a dash where there is no number."""
  table = Table(title=title)
  for column in rows[0]:
    table.add_column(column, justify="left" if column == "case" else "right")
  for row in rows:
    table.add_row(*("-" if value is None else str(value) for value in row.values()))
  width = None if sys.stdout.isatty() else 200  # a file has no edge to wrap at
  Console(width=width).print(table)


def where() -> dict:
  """What the numbers were measured on."""
  import jax  # noqa: PLC0415  after runtime.prepare()

  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def read(path: str) -> dict:
  """An earlier result."""
  try:
    return json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as reason:
    raise Wrong(
      f"bench: {path!r} cannot be read ({reason}); name a file that an earlier run wrote."
    ) from reason


def compare(old: list[dict], new: list[dict], better: dict[str, str]) -> list[str]:
  """What is worse than before by more than a tenth, one line each.

  >>> old, new = [{"case": "E8", "rate": 1.0}], [{"case": "E8", "rate": 0.8}]
  >>> compare(old, new, {"rate": "higher"})
  ['E8: rate 1.0 -> 0.8']
  >>> compare(old, new, {"rate": "lower"})
  []
  """
  before = {row["case"]: row for row in old}
  lines = []
  for row in new:
    for key, direction in better.items():
      was, now = before.get(row["case"], {}).get(key), row.get(key)
      if was is None or now is None:
        continue
      loss = was - now if direction == "higher" else now - was
      if loss > ALARM * abs(was):
        lines.append(f"{row['case']}: {key} {was} -> {now}")
  return lines


if __name__ == "__main__":
  sys.exit(command.guard(main, sys.argv[1:]))
