"""A grid of runs: trains every point of a sweep file, then writes one table and one plot.

Run:    python -m experiments.sweep --config=configs/sweeps/sparsity.py --workdir=runs/sparsity
        [--launcher=local|ray] [--workers=N] [--config.a.b=value ...]

A sweep file has get_config(), what all points share, and GRID (see experiments/grid.py). A point's
folder is named by the hash of its whole config: the same command again skips what is finished,
resumes what is not, and runs anew what was changed. The folder gets results.jsonl, results.csv,
loss_vs_compute.png and sweep.html. Exit code 0: all done; 1: some failed; 2: wrong use.
"""

import dataclasses
import json
import pathlib
import sys

from experiments import command, grid, launch, results
from moejax.core import config, flags
from moejax.core.plugin import Wrong
from moejax.report import html


@dataclasses.dataclass(frozen=True)
class Point:
  series: str  # the line in the plot
  settings: dict  # path -> value
  job: launch.Job
  refused: str | None  # why it cannot run

  def row(self, error: str | None) -> dict:
    """Its line of the table, as far as the run has come."""
    row = {"series": self.series, "name": self.job.label, "status": "done", "error": ""}
    if error:
      row |= {"status": "failed", "error": error}
    elif not self.job.finished():
      row |= {"status": "open"}
    return {**row, **results.outcome(self.job.workdir), "settings": self.settings}


def main(argv: list[str]) -> int:
  """The command line."""
  options, rest = command.split(argv, workdir="", launcher="local", workers=1)
  if not options["workdir"]:
    raise Wrong("sweep: there is no workdir; give --workdir=DIR.")
  workdir = pathlib.Path(options["workdir"])
  points = plan(rest, workdir)
  errors = {point.job: point.refused for point in points}
  todo = [job for job, refused in errors.items() if not refused and not job.finished()]
  print(f"{len(points)} points, {len(todo)} to run, in {workdir}")
  start = launch.launcher(options["launcher"])
  try:
    for job, error in command.follow(start(todo, options["workers"]), todo):
      errors[job] = error
      write_table(points, errors, workdir)
  finally:
    rows = write_table(points, errors, workdir)
  print(results.table(rows))
  results.compute_page(rows, f"Sweep {workdir.name}", workdir)
  print(f"wrote {workdir}/results.csv, loss_vs_compute.png and sweep.html")
  return 0 if all(row["status"] == "done" for row in rows) else 1


def plan(argv: list[str], workdir: pathlib.Path) -> list[Point]:
  """The points of the sweep that a command line names; refused where every point is wrong."""
  module, _ = flags.find(_source(argv))
  if not hasattr(module, "GRID"):
    raise Wrong(f"{module.__file__} has no GRID, so it is no sweep; see configs/sweeps.")
  given = {word.partition("=")[0].removeprefix("--config.") for word in argv}
  grid_points = grid.points(module.GRID)
  points = {}
  for settings, name in zip(grid_points, grid.names(grid_points), strict=True):
    twice = given & set(settings)
    if twice:
      raise Wrong(f"--config.{twice.pop()}: the grid itself sets it; change the sweep file.")
    point = _point(settings, name, argv, workdir)
    points.setdefault(point.job.workdir, point)
  if all(point.refused for point in points.values()):
    raise Wrong(f"no point of the grid can run: {next(iter(points.values())).refused}")
  return list(points.values())


def write_table(points, errors, workdir) -> list[dict]:
  """The rows so far, in results.jsonl and results.csv."""
  rows = [point.row(errors[point.job]) for point in points]
  workdir.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(row) for row in rows)
  html.write(workdir / "results.jsonl", "".join(f"{line}\n" for line in lines))
  html.write(workdir / "results.csv", results.csv(rows))
  return rows


def _source(argv):
  sources = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
  if len(sources) != 1:
    raise Wrong(f"{len(sources)} config files were given; give one: --config=configs/sweeps/X.py.")
  return sources[0]


def _point(settings, name, argv, workdir):
  paths = {path: value for path, value in settings.items() if path != grid.LABEL}
  argv = (*argv, *(f"--config.{path}={value!r}" for path, value in paths.items()))
  cfg, steps, refused = flags.parse(list(argv)), 1, None
  try:
    steps = config.resolve(cfg).train.steps
  except Wrong as mistake:
    refused = str(mistake)
  job = launch.Job(name, argv, workdir / grid.key(cfg), steps)
  return Point(settings.get(grid.LABEL, name), paths, job, refused)


if __name__ == "__main__":
  sys.exit(command.guard(main, sys.argv[1:]))
