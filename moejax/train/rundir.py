"""The run directory: config.json, metrics.jsonl, TensorBoard events, log.txt, environment.json."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax

from moejax.core import config
from moejax.core.plugin import Wrong

FREE = (  # may differ when a run is resumed: they change neither the model nor its batches
  "mesh",
  "roles",
  "roles.attention",
  "roles.experts",
  "roles.router",
  "train.log_every",
  "train.eval_every",
  "train.eval_batches",
  "train.checkpoint_every",
  "train.keep",
  "train.bad_steps",
  "train.sample_tokens",
  "train.trace_every",
  "train.trace_split",
  "data.cache",
)
PACKAGES = ("moejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunDir:
  """The files of one run; only the first process writes."""

  def __init__(self, workdir, dumped: dict):
    self.path = pathlib.Path(workdir).absolute()
    self.writes = jax.process_index() == 0
    self.events = None
    try:
      (self.path / "plots").mkdir(parents=True, exist_ok=True)
      (self.path / "checkpoints").mkdir(exist_ok=True)
      probe = self.path / f".writable_{jax.process_index()}"
      probe.write_text("")
      probe.unlink()
    except OSError as reason:
      raise Wrong(
        f"the workdir {str(self.path)!r} cannot be written to ({reason.strerror}); choose another"
        " with --workdir=DIR."
      ) from reason
    self._check_config(dumped)
    self.write_json("config.json", dumped)

  def _check_config(self, dumped):
    file, traces = self.path / "config.json", [self.path / "metrics.jsonl"]
    traces += (self.path / "checkpoints").iterdir()
    if not file.exists() or not any(trace.exists() for trace in traces):
      return  # nothing of another run would be lost
    try:
      before = json.loads(file.read_text())
    except ValueError:
      raise Wrong(f"{file} is not readable JSON; move the workdir away or repair it.") from None
    differ = config.differences(before, json.loads(json.dumps(dumped)))
    differ = [line for line in differ if line.split(":")[0] not in FREE]
    if differ:
      shown = "; ".join(differ[:8]) + (f"; and {len(differ) - 8} more" if len(differ) > 8 else "")
      raise Wrong(
        f"the workdir {str(self.path)!r} holds a run of another config ({len(differ)} keys differ:"
        f" {shown}); use the old values to resume it, or another --workdir."
      )

  def write_json(self, name: str, content) -> None:
    """A file that is either the old or the new one, never half of it."""
    if self.writes:
      temporary = self.path / f".{name}.tmp"
      temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")
      temporary.replace(self.path / name)

  def write_text(self, name: str, content: str) -> None:
    """A text file, whole."""
    if self.writes:
      (self.path / name).write_text(content, encoding="utf-8")

  def forget_after(self, step: int, stage: int) -> None:
    """Takes out the lines of steps that will be run again, and of stages to be entered again."""
    file = self.path / "metrics.jsonl"
    if not self.writes or not file.exists():
      return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
      try:
        found = json.loads(line)
        kept += [line] if found["step"] <= step and found.get("stage", stage) <= stage else []
      except (ValueError, KeyError):
        continue  # the line that was being written when the run was killed
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(file)

  def done(self) -> bool:
    """Whether the run has written its last line."""
    file = self.path / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return any(json.loads(line)["kind"] == "done" for line in lines[-8:])

  def log(self, kind: str, **fields) -> None:
    """One line of metrics.jsonl, and its numbers as TensorBoard scalars."""
    if not self.writes:
      return
    with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
      file.write(json.dumps({"kind": kind, **fields}) + "\n")
    if kind not in ("train", "eval"):
      return
    if self.events is None:
      import tensorboardX  # noqa: PLC0415  half a second that short commands need not pay

      self.events = tensorboardX.SummaryWriter(str(self.path), max_queue=1000)
    for name, value in _scalars(fields):
      self.events.add_scalar(f"{kind}/{name}", value, fields["step"])

  def say(self, line: str, show=print) -> None:
    """A line for people: to the terminal and to log.txt."""
    if self.writes:
      show(line)
      with (self.path / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

  def close(self) -> None:
    """Flushes the events."""
    if self.events is not None:
      self.events.close()


def _scalars(fields, prefix=""):
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _scalars(value, f"{prefix}{name}/")
    elif isinstance(value, int | float) and name not in ("step", "stage"):
      yield prefix + name, value


def environment() -> dict:
  """Versions, devices and the revision of the code."""
  here = pathlib.Path(__file__).parent
  git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
  try:
    revision = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    revision = ""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "versions": versions,
    "python": sys.version.split()[0],
    "platform": platform.platform(),
    "cpus": os.cpu_count(),
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    "processes": jax.process_count(),
    "revision": revision or "unknown",
    "command": sys.argv,
  }
