"""What a run writes while it goes on: lines for people, lines of metrics, and the time it takes."""

import contextlib
import time

import jax
import numpy as np

from moejax.core import dtypes
from moejax.perf import flops as counts
from moejax.perf import hardware
from moejax.train import display, evaluate, metrics, migration, processes, rundir
from moejax.train import mesh as meshes


class Record:
  """The counts of a run since its first step, also of the parts before a resume."""

  def __init__(self, folder: rundir.RunDir, total: int, terminal: bool | None):
    self.folder, self.total = folder, total
    self.display = display.make(total, terminal if folder.writes else False)
    self.tokens, self.flops, self.evaluation = 0, 0.0, {}
    self.start, self.paused = time.perf_counter(), 0.0
    self.lap = (self.start, 0, 0)
    self.flops_per_token, self.peak, self.owners = 0.0, ("", 1.0), 1

  def counts(self) -> dict:
    """What a checkpoint keeps."""
    kept = {"tokens": self.tokens, "flops": self.flops, "evaluation": self.evaluation}
    return {**kept, "time": self.time()}

  def go_on(self, kept: dict) -> None:
    """From the counts of a checkpoint."""
    self.tokens, self.flops, self.evaluation = (
      kept[name] for name in ("tokens", "flops", "evaluation")
    )
    self.start -= kept["time"]

  def say(self, line: str) -> None:
    """A line for people."""
    self.folder.say(line, self.display.line)

  def time(self) -> float:
    """Seconds since the start of the run."""
    return round(time.perf_counter() - self.start, 3)

  @contextlib.contextmanager
  def pause(self):
    """What happens inside does not count as time of steps."""
    start = time.perf_counter()
    yield
    self.paused += time.perf_counter() - start

  def describe(self, at, corpus, mesh, params) -> None:
    """environment.json, and a first line; `at` is the stage."""
    self.peak = hardware.peak(dtypes.dtype(dtypes.filled(at.cfg.precision).compute).name)
    self.owners = migration.owners(at.cfg, mesh)
    self.stage(at, None)
    sizes = counts.params(at.cfg.model, at.cfg.data.seq_len)
    about = rundir.environment()
    about |= {"peak": {"name": self.peak[0], "flops": self.peak[1]}, "parameters": sizes}
    about |= {"flops_per_token": self.flops_per_token, "data": corpus.describe()}
    self.folder.write_json("environment.json", {**about, "mesh": dict(mesh.shape)})
    for line in meshes.uncut(params, mesh):
      self.say(line)
    self.say(
      f"{sizes['total']:,} parameters, {sizes['active']:,} active for a token;"
      f" {self.flops_per_token / 1e6:.2f} MFLOP per token; peak {self.peak[0]}"
    )

  def stage(self, at, step: int | None) -> None:
    """The clock of a stage, whose model has FLOPs of its own."""
    self.flops_per_token = counts.train(at.cfg.model, at.cfg.data.seq_len)
    if step is not None:
      self._lap(step)

  def step(self, at, step: int) -> None:
    """One more step."""
    tokens = at.cfg.train.batch_size * at.cfg.data.seq_len
    self.tokens += tokens
    self.flops += self.flops_per_token * tokens
    self.display.step(step)

  def train(self, at, state, seen: dict, step: int) -> None:
    """A logged step; `seen` is what the step returned."""
    seen = jax.device_get(seen)
    seconds, steps, tokens = self._lap(step)
    rate = tokens / seconds
    fields = {name: float(seen[name]) for name in ("loss", "balance", "lr", "grad_norm")}
    fields |= {"skipped": int(seen["skipped"]), "tokens": self.tokens, "flops": self.flops}
    fields |= {"tokens_per_s": round(rate, 1), "step_ms": round(1e3 * seconds / steps, 2)}
    fields |= {"mfu": round(rate * self.flops_per_token / self.peak[1], 4), "time": self.time()}
    fields |= {"knobs": {k: np.asarray(v).tolist() for k, v in seen["knobs"].items()}}
    model_state = processes.fetch(state.model_state)
    fields |= metrics.of_step(seen["sums"], model_state, at.cfg.model, self.owners)
    self.folder.log("train", stage=at.index, step=step, **fields)
    self.folder.say(display.summary(step, self.total, fields), self.display.summary)

  def evaluated(self, at, found: dict, step: int, labels: tuple) -> None:
    """An evaluation; with `labels`, also by domain."""
    self.evaluation = evaluate.numbers(found)
    self.folder.log("eval", stage=at.index, step=step, **self.evaluation)
    if len(labels) > 1 and metrics.moe_layers(at.cfg.model):
      self.folder.log("domains", step=step, **evaluate.domains(found, labels, at.cfg.model))
    self.say(
      "step {}: held-out loss {loss:.4f}, perplexity {perplexity:.2f},"
      " {bits_per_byte:.4f} bits per byte".format(step, **self.evaluation)
    )

  def _lap(self, step: int):
    """(seconds, steps, tokens) since the last call."""
    now = (time.perf_counter() - self.paused, step, self.tokens)
    before, self.lap = self.lap, now
    return tuple(b - a for a, b in zip(before, now, strict=True))
