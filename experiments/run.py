"""Train, evaluate and report one config; the same command run again goes on where it was.

python -m experiments.run --config=configs/quickstart.py [--config.a.b=value ...] [--workdir=DIR]

--config=FILE[:ARM]     a config file, and one of its arms
--config.PATH=VALUE     any field of any component; list items as [i]; a new .name starts afresh
--workdir=DIR           where everything is written (default: runs/<name of the config>)
--devices=N             so many virtual devices on a CPU
--coordinator=HOST:PORT --processes=N --process=I    one of several processes (docs/launch.md)
--distributed           one of several, by what JAX detects (Slurm, MPI and GKE need no word)
--heartbeat=SECONDS     after which the others end when a process is gone (100)
--allocator=system      keep the C library's own settings (default: tuned for large arrays)
--debug                 show the traceback of an error
"""

import pathlib
import sys

from experiments import command, runtime


def main(argv: list[str]) -> int:
  """Trains, and writes the report."""
  if not argv or {"-h", "--help"} & set(argv):
    print(__doc__)
    return 0 if argv else 2
  where = {"coordinator": "", "process": -1, "processes": 0, "distributed": False, "heartbeat": 100}
  options, words = command.split(argv, workdir="", devices=1, allocator="tuned", **where)
  runtime.prepare(allocator=options["allocator"] == "tuned", devices=options["devices"])
  # these import jax, which reads what prepare() has set
  from moejax.core import config, flags  # noqa: PLC0415
  from moejax.report import page  # noqa: PLC0415
  from moejax.train import loop, processes  # noqa: PLC0415

  process = None if options["process"] < 0 else options["process"]
  met = (options["coordinator"], process, options["processes"], options["distributed"])
  processes.start(*met, timeout=options["heartbeat"])
  cfg = config.resolve(flags.parse(words))
  result = loop.fit(cfg, options["workdir"] or default_workdir(words))
  if result.finished and processes.is_first():
    print(f"report: {page.write(result.workdir)}")
  return 0


def default_workdir(words: list[str]) -> str:
  """runs/ and the name of the config file, with its arm.

  >>> default_workdir(["--config=configs/studies/router_shootout.py:topk"])
  'runs/router_shootout_topk'
  """
  source = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
  file, _, arm = source.partition(".py")
  return str(pathlib.Path("runs", pathlib.Path(file).name + arm.replace(":", "_")))


if __name__ == "__main__":
  command.leave(command.guard(main, sys.argv[1:]))
