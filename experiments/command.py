"""What the commands of this folder share: options, exit codes, and progress over many jobs."""

import logging
import os
import signal
import sys
import time

import absl.logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moejax.core import plugin
from moejax.core.plugin import Failed, Wrong


def split(argv: list[str], **defaults) -> tuple[dict, list[str]]:
  """(options, the other words): `--name=value` for the names of `defaults`, by their types.

  What is False by default is a switch, `--name`.

  >>> split(["--workers=2", "--config=a.py"], workers=1, workdir="")
  ({'workers': 2, 'workdir': ''}, ['--config=a.py'])
  """
  options, rest = dict(defaults), []
  for word in argv:
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or name.startswith("config") or name == "debug":
      rest.append(word)
    elif name not in defaults:
      known = [f"--{known}" for known in defaults]
      raise Wrong(f"--{name} is no option here. {plugin.hint(f'--{name}', known)}")
    elif isinstance(defaults[name], bool):
      if equals:
        raise Wrong(f"{word!r}: --{name} has no value; write it alone, or leave it out.")
      options[name] = True
    elif not equals or (isinstance(defaults[name], int) and not value.isdecimal()):
      kind = "number" if isinstance(defaults[name], int) else "value"
      raise Wrong(f"{word!r} gives --{name} no {kind}; write --{name}={kind.upper()}.")
    else:
      options[name] = type(defaults[name])(value)
  return options, rest


def guard(main, argv: list[str]) -> int:
  """main(argv) as an exit code; a mistake or a failure is one sentence, --debug shows where."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  if "--debug" not in argv:  # libraries report a full disk with a traceback from every thread
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  try:
    return main([word for word in argv if word != "--debug"])
  except (Wrong, Failed) as problem:
    if "--debug" in argv:
      raise
    print(f"error: {problem}", file=sys.stderr)
    return 2 if isinstance(problem, Wrong) else 1
  except KeyboardInterrupt:
    print("stopped: what runs was saved; the same command goes on from here.", file=sys.stderr)
    return 1


def leave(code: int) -> None:
  """Ends the process; after a failure without the exit handlers, which would try to write again,
  and would wait for the other processes of a run."""
  if code:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def follow(events, jobs):
  """The jobs as they end, (job, error): a bar with ETA in a terminal, else a line for each."""
  console, begin = Console(), time.monotonic()
  columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
  fields = [TextColumn(c) if isinstance(c, str) else c for c in columns]
  total, ended = sum(job.steps for job in jobs), 0
  with Progress(*fields, TimeRemainingColumn(), console=console, transient=True) as bar:
    task = bar.add_task(f"{len(jobs)} runs, steps", total=total)
    for event in events:
      if event is None:
        if console.is_terminal:
          bar.update(task, completed=sum(job.steps_done() for job in jobs))
        continue
      job, error = event
      ended += 1
      left = (time.monotonic() - begin) / ended * (len(jobs) - ended)
      verdict = f"failed: {error}" if error else "done"
      about = f", about {left / 60:.0f} min left" if ended < len(jobs) else ""
      console.print(
        f"[{ended}/{len(jobs)}] {job.label}: {verdict}{about}", markup=False, soft_wrap=True
      )
      yield event
