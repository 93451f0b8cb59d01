"""Does a router that remembers what it saw in the layers before choose better?"""

import itertools

import numpy as np

from configs.studies.rmoe import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import heldout, verdicts
from moejax.report import domains

CLAIM = (
  "With as many router parameters, a router with memory over depth reaches a lower held-out loss"
  " than an MLP in each layer, and less so where no gradient flows through the memory."
)


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
  linear = table.values("linear", "loss").mean()
  word = verdicts.weakest(memory, gradient)
  return f"{word}: memory {memory}; its gradient {gradient}; linear {linear:.4f}"


def neighbours(path) -> float:
  """Bits that a layer's first choice tells about the next layer's, mean over neighbours."""
  found = heldout.choices(path)
  first_LN = found.expert_LNK[:, (found.expert_LNK[..., 0] >= 0).all(0), 0]
  tables = []
  for here_N, next_N in itertools.pairwise(first_LN):
    tables.append(np.zeros((found.experts, found.experts)))
    np.add.at(tables[-1], (here_N, next_N), 1)
  return float(np.mean(list(map(domains.information, tables))))
