"""Does a router that remembers what it saw in the layers before choose better?"""

import functools

import jax
import numpy as np

from configs.studies.rmoe import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts
from moejax.core import tree
from moejax.train import objective, restore
from moejax.train.metrics import moe_layers

CLAIM = (
  "With as many router parameters, a router with memory over depth reaches a lower held-out loss"
  " than an MLP in each layer, and less so where no gradient flows through the memory."
)
BATCHES = 4  # of held-out text, for the choices of neighbouring layers


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "mutual_information": neighbours(run.path),
    "load_entropy": run.layer_mean("load_entropy"),
    "margin": run.layer_mean("margin"),
  }


def verdict(table) -> str:
  """Both halves of the claim: the weaker word of the two."""
  memory = verdicts.lower(table, "loss", "recurrent", than="mlp")
  gradient = verdicts.lower(table, "loss", "recurrent", than="stopped")
  words = [half.partition(":")[0] for half in (memory, gradient)]
  word = next(w for w in ("fails", "unclear", "holds") if w in words)
  linear = table.values("linear", "loss").mean()
  return f"{word}: memory {memory}; its gradient {gradient}; linear {linear:.4f}"


def mutual_information(a_N, b_N) -> float:
  """What one layer's first choice tells about the next one's, in bits.

  >>> same, other = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
  >>> mutual_information(same, same), mutual_information(same, other)
  (1.0, 0.0)
  """
  joint = np.zeros((a_N.max() + 1, b_N.max() + 1))
  np.add.at(joint, (a_N, b_N), 1 / len(a_N))
  apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  seen = joint > 0
  return float(np.sum(joint[seen] * np.log2(joint[seen] / apart[seen])))


def neighbours(path) -> float:
  """The mean of mutual_information over neighbouring layers, on held-out text."""
  trained = restore.load(path)
  found = [first_choices(trained, batch) for batch in held_out(trained)]
  choice_LN = np.concatenate(found, axis=1)
  pairs = zip(choice_LN[:-1], choice_LN[1:], strict=True)
  return float(np.mean([mutual_information(a_N, b_N) for a_N, b_N in pairs]))


def held_out(trained):
  """A few batches of held-out text."""
  size = trained.cfg.train.batch_size
  batches = trained.corpus.batches("validation", size, epochs=1)
  return [batch for batch, _ in zip(batches, range(BATCHES), strict=False)]


def first_choices(trained, batch) -> np.ndarray:
  """The first choice of every token in every layer, [L, N], padding left out."""
  token_BT, ctx, _, _ = objective.inputs(batch, taps=("expert_NK",))
  sums = compiled(trained.model)(trained.variables, token_BT, ctx)
  sums = tree.unstack(sums, trained.cfg.model)
  of = lambda name, path: np.asarray(tree.at(sums[name], path)["taps/expert_NK"])[:, 0]
  choice_LN = np.stack([of(name, path) for name, path in moe_layers(trained.cfg.model)])
  return choice_LN[:, np.asarray(ctx.valid_N)]


@functools.cache
def compiled(model):
  """(variables, tokens, ctx) -> the sums of all layers."""
  return jax.jit(lambda variables, token_BT, ctx: model.apply(variables, token_BT, ctx)[1])
