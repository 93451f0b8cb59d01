"""A claim put to the test: every arm with every seed, one table, one verdict computed from it.

Run:    python -m experiments.study topk_vs_dense
        [--arms=a,b] [--seeds=3] [--workers=N] [--workdir=DIR] [--config.a.b=value ...]

configs/studies/X.py has ARMS and get_config(arm); experiments/studies/X.py has CLAIM, measure(run)
and verdict(table), and where its plot is to show other columns than the loss, SHOWN. The same
command again skips the runs that are finished. A study run whole (all arms, at least three seeds,
nothing overridden) is written to docs/results/X.json and X.png; any study to its own folder. Exit
code 0: the claim holds; 1: it fails or is unclear; 2: wrong use.
"""

import datetime
import importlib
import json
import math
import pathlib
import pkgutil
import sys

import configs
from experiments import command, grid, launch, results, studies
from experiments.verdicts import Table
from moejax.core import config, flags, plugin
from moejax.core.plugin import Wrong
from moejax.report import html, read, style
from moejax.train import mesh

SEEDS = 3  # the fewest that a verdict rests on
ROOT = pathlib.Path(configs.__file__).parents[1]


def main(argv: list[str]) -> int:
  """The command line."""
  options, rest = command.split(argv, arms="", seeds=SEEDS, workers=1, workdir="")
  names = [word for word in rest if not word.startswith("--")]
  overrides = [word for word in rest if word.startswith("--")]
  if len(names) != 1 or options["seeds"] < 1:
    raise Wrong("study: give one study and at least one seed, as in: topk_vs_dense --seeds=3.")
  study = load(names[0])
  arms = choose(options["arms"], study.ARMS)
  workdir = pathlib.Path(options["workdir"] or f"runs/studies/{names[0]}")
  jobs = plan(names[0], arms, range(options["seeds"]), overrides, workdir)

  print(f"Claim: {study.CLAIM}")
  todo = [job for job in jobs.values() if not job.finished()]
  print(f"{len(jobs)} runs, {len(todo)} to do, in {workdir}")
  failed = [job for job, error in command.follow(launch.local(todo, options["workers"]), todo)
            if error]  # fmt: skip
  done = {of: read.read(job.workdir) for of, job in jobs.items() if job not in failed}
  rows = [{"arm": arm, "seed": seed, **study.measure(run)} for (arm, seed), run in done.items()]
  verdict = judge(study, rows, failed, whole_arms=set(arms) == set(study.ARMS))
  if rows:
    print(results.table(rows, [key for key in rows[0] if key not in ("arm", "seed")]))
  print(f"\n{verdict}")
  write(study, names[0], rows, done, verdict, workdir)
  if len(arms) == len(study.ARMS) and options["seeds"] >= SEEDS and not overrides and not failed:
    if (ROOT / "docs").is_dir():
      write(study, names[0], rows, done, verdict, ROOT / "docs" / "results")
  return 0 if verdict.startswith("holds") else 1


def load(name: str):
  """The module of a study."""
  known = [module.name for module in pkgutil.iter_modules(studies.__path__)]
  if name not in known:
    raise Wrong(f"there is no study {name!r}. {plugin.hint(name, known)}")
  return importlib.import_module(f"experiments.studies.{name}")


def choose(wanted: str, arms: dict) -> list[str]:
  """The arms in `wanted`, separated by commas; all of them for an empty one.

  >>> choose("b", {"a": 0, "b": 1}), choose("", {"a": 0, "b": 1})
  (['b'], ['a', 'b'])
  """
  for arm in filter(None, wanted.split(",")):
    if arm not in arms:
      raise Wrong(f"study: there is no arm {arm!r}. {plugin.hint(arm, arms)}")
  return [arm for arm in arms if not wanted or arm in wanted.split(",")]


def plan(name, arms, seeds, overrides, workdir) -> dict:
  """(arm, seed) -> Job; a folder is named by the hash of its config, so a changed arm runs anew."""
  jobs = {}
  for arm in arms:
    for seed in seeds:
      argv = (f"--config=configs/studies/{name}.py:{arm}", f"--config.train.seed={seed}")
      argv += tuple(overrides)
      cfg = flags.parse(list(argv))
      folder = workdir / f"{arm}_{seed}_{grid.key(cfg)}"
      resolved = config.resolve(cfg)
      steps, devices = resolved.train.steps, math.prod(mesh.parse(resolved.mesh).values())
      argv += (f"--devices={devices}",) if devices > 1 else ()
      jobs[arm, seed] = launch.Job(f"{arm}, seed {seed}", argv, folder, steps, arm)
  return jobs


def judge(study, rows, failed, whole_arms) -> str:
  """The study's verdict, or why there can be none."""
  if failed:
    return f"unclear: {len(failed)} runs failed, the first of them {failed[0].label}."
  if not whole_arms:
    return "unclear: not all arms were run, and the claim is about all of them."
  return study.verdict(Table(rows))


def write(study, name, rows, done, verdict, folder):
  """<name>.json and <name>.png in a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  record = {
    "study": name,
    "claim": study.CLAIM,
    "arms": study.ARMS,
    "seeds": sorted({row["seed"] for row in rows}),
    "numbers": {"runs": rows, "arms": Table(rows).summary()},
    "verdict": verdict,
    "date": datetime.date.today().isoformat(),
    "revision": " ".join(sorted({str(run.environment.get("revision")) for run in done.values()})),
  }
  html.write(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
  if rows:
    with style.context():
      columns = getattr(study, "SHOWN", ("loss",))
      figure = results.study_plot(rows, study.CLAIM, verdict, columns)
      style.png(figure, folder / f"{name}.png")


if __name__ == "__main__":
  sys.exit(command.guard(main, sys.argv[1:]))
