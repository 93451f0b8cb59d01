"""What a trained run chooses on held-out text, token by token."""

import contextlib
import functools
import itertools
import typing

import jax
import numpy as np

from moejax.core import tree
from moejax.train import objective, phase, restore
from moejax.train.metrics import moe_layers


class Choices(typing.NamedTuple):
  loss_N: np.ndarray  # of the next token
  expert_LNK: np.ndarray  # ids, -1 for an unused choice; virtual ones from `experts` on
  experts: int

  def real_LN(self) -> np.ndarray:
    """How many experts work on each token.

    >>> Choices(np.zeros(1), np.array([[[3, -1, 8]]]), experts=8).real_LN().tolist()
    [[1]]
    """
    return ((self.expert_LNK >= 0) & (self.expert_LNK < self.experts)).sum(2)

  def numbers(self) -> dict:
    """Columns of a study: experts of a token, and of those easier and harder than the median."""
    real_LN, hard_N = self.real_LN(), self.loss_N > np.median(self.loss_N)
    return {
      "experts": float(real_LN.mean()),
      "experts_spread": float(real_LN.std(1).mean()),
      "experts_easy": float(real_LN[:, ~hard_N].mean()),
      "experts_hard": float(real_LN[:, hard_N].mean()),
    }


def choices(path, batches: int = 4) -> Choices:
  """Of the run in a folder, whose MoE layers are alike, on the first batches of held-out text."""
  trained = restore.load(path)
  cfg, layers, parts = trained.cfg, moe_layers(trained.cfg.model), []
  knobs = {name: at(trained.step - 1) for name, at in phase.knobs(cfg).items()}
  run = _compiled(trained.model, cfg.precision)
  reading = trained.corpus.batches("validation", cfg.train.batch_size, epochs=1)
  with contextlib.closing(reading):
    for batch in itertools.islice(reading, batches):
      _, loss_N, valid_N, sums = jax.device_get(run(trained.variables, batch, knobs))
      by_layer = tree.unstack(sums, cfg.model)
      chosen = [tree.at(by_layer[name], path)["taps/expert_NK"] for name, path in layers]
      parts.append((loss_N[valid_N], np.stack(chosen)[:, valid_N]))
  loss, expert = zip(*parts, strict=True)
  experts = cfg.model.layers[0].ffn.num_experts
  return Choices(np.concatenate(loss), np.concatenate(expert, axis=1), experts)


@functools.cache
def _compiled(model, precision):
  """(variables, batch, knobs) -> what objective.cross_entropy has, with the chosen ids."""

  def run(variables, batch, knobs):
    fields = {"taps": ("expert_NK",), "knobs": knobs}
    return objective.cross_entropy(model, variables, batch, precision, **fields)

  return jax.jit(run)
