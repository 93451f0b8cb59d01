"""Runs as processes: many jobs on this machine or on a Ray cluster, each one resumable.

A job is a command line of experiments.run in a process of its own, so a run that dies takes nothing
with it, and every run starts from a clean jax.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.report import read

PATIENCE = 60.0  # seconds that a stopped run has for its last checkpoint


@dataclasses.dataclass(frozen=True)
class Job:
  label: str
  argv: tuple[str, ...]  # of experiments.run, without the workdir
  workdir: pathlib.Path
  steps: int  # of training, for the progress bar
  program: str = ""  # jobs that name the same one compile the same

  def command(self) -> list[str]:
    """The process of the job."""
    return [sys.executable, "-m", "experiments.run", *self.argv, f"--workdir={self.workdir}"]

  def finished(self) -> bool:
    """Whether the run in the workdir came to its end."""
    run = self._run()
    return run is not None and bool(run.kind("done"))

  def steps_done(self) -> int:
    """The newest logged step, 0 before the first."""
    run = self._run()
    return 0 if run is None else min(run.last_step, self.steps)

  def _run(self):
    return read.read(self.workdir) if (self.workdir / "metrics.jsonl").is_file() else None


def local(jobs: list[Job], workers: int):
  """Runs the jobs, `workers` at a time; yields (job, error or None), or None while all go on.

  The processor cores are dealt out to the workers. Each keeps compiled programs for its next jobs
  and prefers those of a program that it has. Closing the generator stops what runs.
  """
  waiting, running, known = list(jobs), {}, collections.defaultdict(set)
  free = collections.deque(enumerate(_cores(workers)))
  try:
    while waiting or running:
      while waiting and free:
        worker, cores = free.popleft()
        others = set().union(*(known[other] for other in range(workers) if other != worker))
        job = least_to_compile(waiting, known[worker], others)
        waiting.remove(job)
        known[worker].add(job.program)
        cache = job.workdir.parent / ".compiled" / str(worker)  # entries are not safe for two
        running[_start(job, cores, cache)] = (job, (worker, cores))
      ended = [process for process in running if process.poll() is not None]
      for process in ended:
        job, worker = running.pop(process)
        free.append(worker)
        yield job, error_of(job, process.returncode)
      if not ended:
        yield None
        time.sleep(0.2)
  finally:
    _stop(list(running))


def least_to_compile(waiting: list[Job], mine: set[str], others: set[str]) -> Job:
  """The first job of a program of mine; else of one that no other worker has; else of any."""
  kinds = (lambda job: job.program in mine, lambda job: job.program not in others, lambda job: True)
  return next(job for is_kind in kinds for job in waiting if is_kind(job))


def ray(jobs: list[Job], workers: int):
  """As local(), on the Ray cluster of RAY_ADDRESS or a new one here; workdirs must be shared."""
  if importlib.util.find_spec("ray") is None:
    raise Wrong("launcher ray: ray is not installed; run pip install 'moejax[sweep]'.")
  engine = importlib.import_module("ray")
  engine.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True)
  total = engine.cluster_resources().get("CPU", 1)

  @engine.remote(num_cpus=max(1, int(total // workers)), max_retries=0)
  def remote(job):
    process = _start(job, None, None)
    try:
      return error_of(job, process.wait())
    finally:
      _stop([process])

  running = {remote.remote(job): job for job in jobs}
  try:
    while running:
      ended, _ = engine.wait(list(running), num_returns=1, timeout=1.0)
      for future in ended:
        yield running.pop(future), engine.get(future)
      if not ended:
        yield None
  finally:
    for future in running:
      engine.cancel(future)
    engine.shutdown()


LAUNCHERS = {"local": local, "ray": ray}


def launcher(name: str):
  """A launcher by its name."""
  if name not in LAUNCHERS:
    raise Wrong(f"launcher {name!r} is unknown. {plugin.hint(name, LAUNCHERS)}")
  return LAUNCHERS[name]


def error_of(job: Job, code: int) -> str | None:
  """Why a job's process came to nothing: its last sentence; None if the run is finished."""
  if code == 0 and job.finished():
    return None
  lines = (job.workdir / "output.txt").read_text(errors="replace").strip().splitlines()
  said = [line for line in lines if line.startswith("error:")] or lines or ["no output"]
  return f"{said[-1].removeprefix('error: ')} (exit code {code})"


def _cores(workers):
  """The processor cores of each worker, or None where they cannot be dealt out."""
  if workers < 1:
    raise Wrong(f"{workers} workers can run nothing; give --workers=1 or more.")
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  if workers == 1 or len(cores) < workers:
    return [None] * workers
  cut = [i * len(cores) // workers for i in range(workers + 1)]
  return [set(cores[cut[i] : cut[i + 1]]) for i in range(workers)]


def _start(job, cores, cache):
  """The process, in a group of its own: a Ctrl-C in the terminal reaches it through _stop alone."""
  job.workdir.mkdir(parents=True, exist_ok=True)
  own = {} if cache is None else {
    "JAX_COMPILATION_CACHE_DIR": str(cache.resolve()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }  # fmt: skip
  with open(job.workdir / "output.txt", "wb") as output, _pinned(cores):
    return subprocess.Popen(
      job.command(),
      stdout=output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env={**own, **os.environ},
    )


@contextlib.contextmanager
def _pinned(cores):
  """A child inherits the cores its parent has at the moment."""
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def _stop(processes):
  """SIGTERM lets a run save itself; one that does not end in time is killed."""
  for process in processes:
    process.send_signal(signal.SIGTERM)  # nothing happens to one that has ended
  deadline = time.monotonic() + PATIENCE
  try:
    for process in processes:
      process.wait(max(0.0, deadline - time.monotonic()))
  except (subprocess.TimeoutExpired, KeyboardInterrupt):
    for process in processes:
      process.kill()
      process.wait()
