"""Does a decision for many tokens need fewer experts, and what does it lose?"""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from configs.studies.chunk_routing import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts
from moejax.core import runs, tree
from moejax.layers import moe
from moejax.train import evaluate, objective, restore

CLAIM = (
  "From decisions for 1 token to decisions for 4, 16 and 64, the experts that 128 tokens in a row"
  " use fall with every step, and the held-out loss of 64 is above that of 1."
)
STRETCH, BATCHES = 16, 4  # tokens; held-out batches that are looked at


def measure(run) -> dict:
  """One row of the table, from a finished run and the experts that its last checkpoint uses."""
  trained = restore.load(run.path)
  T = trained.cfg.data.seq_len
  return {
    "loss": run.last("loss", "eval"),
    "experts_per_stretch": distinct(trained, STRETCH),
    "experts_per_sequence": distinct(trained, T),
    "tokens_per_s": run.last("tokens_per_s"),
  }


def distinct(trained, stretch: int) -> float:
  """Different experts in every `stretch` tokens of held-out text, mean over them and layers."""
  B, T = trained.cfg.train.batch_size, trained.cfg.data.seq_len
  label_N = jnp.arange(B * T) // stretch  # choices are counted by label, here a stretch each
  fields = {"label_N": label_N, "labels": B * T // stretch, "taps": (evaluate.BY_LABEL,)}
  found = jax.jit(functools.partial(_sums, trained.model, trained.cfg.precision, **fields))
  with contextlib.closing(trained.corpus.batches("validation", B)) as batches:
    seen = [found(trained.variables, batch) for batch in itertools.islice(batches, BATCHES)]
  paths = [path for path, _ in runs.find(trained.cfg.model.layers, moe.Config)]
  counts = [tree.at(sums, path)[f"taps/{evaluate.BY_LABEL}"] for sums in seen for path in paths]
  used = np.concatenate(counts) > 0  # layers, stretches, experts
  return float(used.sum(-1)[used.any(-1)].mean())


def _sums(model, precision, variables, batch, **fields):
  return objective.cross_entropy(model, variables, batch, precision, **fields)[3]


def verdict(table) -> str:
  """'holds' if both parts do by more than the spread over seeds."""
  arms = ("c1", "c4", "c16", "c64")
  steps = [
    verdicts.lower(table, "experts_per_sequence", longer, than=shorter)
    for shorter, longer in itertools.pairwise(arms)
  ]
  loss = verdicts.lower(table, "loss", "c1", than="c64")
  words = {text.split(":")[0] for text in (*steps, loss)}
  word = next(word for word in ("fails", "unclear", "holds") if word in words)
  means = lambda column: ", ".join(f"{arm} {table.values(arm, column).mean():.3f}" for arm in arms)
  return f"{word}: experts per sequence {means('experts_per_sequence')}; {loss}"
