"""A trained model on its text: loss and choices of every token, some of the choices forced."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np

from moejax.core import dtypes
from moejax.core.plugin import Wrong
from moejax.train import objective, phase, tracing


class Score:
  """score(batch) -> {"loss_BT", "valid_BT", "layers"} of a restore.Trained, compiled.

  A batch may have forced_BTLK and gate_BTLK (train/objective.py). `compute` is another dtype than
  that of the run. `layers` has the `taps` of every router by layer_NNN: by default what a trace
  records.
  """

  def __init__(self, run, compute: str | None = None, taps: tuple = tracing.TAPS):
    precision = run.cfg.precision
    if compute is not None:
      precision = dataclasses.replace(precision, compute=compute, residual=None)
    self.run, self.compiled = run, _compiled(run.model, dtypes.filled(precision), taps)
    self.knobs = {name: value(run.step) for name, value in phase.knobs(run.cfg).items()}

  def __call__(self, batch: dict) -> dict:
    return jax.device_get(self.compiled(self.run.variables, batch, self.knobs))

  def widest(self, batch: dict) -> int:
    """The largest K of a layer."""
    layers = jax.eval_shape(self.compiled, self.run.variables, batch, self.knobs)["layers"]
    return max(mine["expert_NK"].shape[1] for mine in layers.values())


@functools.cache
def _compiled(model, precision, taps):
  """(variables, batch, knobs) -> losses and taps; runs of one model share it."""

  @jax.jit
  def score(variables, batch, knobs):
    fields = {"knobs": knobs, "taps": taps}
    found = objective.cross_entropy(model, variables, batch, precision, **fields)
    _, loss_N, valid_N, layers = found
    by_row = lambda a_N: a_N.reshape(len(batch["token_BT"]), -1)
    chosen = tracing.chosen(layers, model, taps)
    return {"loss_BT": by_row(loss_N), "valid_BT": by_row(valid_N), "layers": chosen}

  return score


def batch_at(run, split: str, index: int) -> dict:
  """One batch of a run's text, the `index`-th of a split."""
  batches = run.corpus.batches(split, run.cfg.train.batch_size, first_step=index)
  with contextlib.closing(batches):
    found = next(batches, None)
  if found is None:
    raise Wrong(f"{split} text has no batch {index}; ask for fewer batches, or a lower first one.")
  return found


def free(run, rows: int, widest: int) -> np.ndarray:
  """The forced_BTLK that forces nothing."""
  return np.full((rows, run.cfg.data.seq_len, len(run.cfg.model.layers), widest), -2, np.int32)
