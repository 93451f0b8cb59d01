"""Does it matter for the loss which of the published softmax conventions is followed?"""

import numpy as np

from configs.studies.conventions import ARMS
from experiments import verdicts

CLAIM = (
  "The published softmax conventions end within 2 per cent of each other's held-out loss at equal"
  " active FLOPs."
)
MARGIN = 0.02


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  layers = (run.train[-1].get("layers") or {}).values()
  mean_of = lambda key: float(np.mean([layer[key] for layer in layers]))
  return {
    "loss": run.last("loss", "eval"),
    "load_entropy": mean_of("load_entropy"),
    "max_vio": mean_of("max_vio"),
    "drop_fraction": mean_of("drop_fraction"),
    "flops_per_token": run.environment["flops_per_token"],
  }


def verdict(table) -> str:
  """'holds' if the worst is inside the margin of the best with every seed, 'fails' if with none."""
  return verdicts.close(table, "loss", ARMS, MARGIN)
