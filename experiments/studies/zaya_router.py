"""Does averaging over depth make an MLP router choose better, and AdamW a smoother bias?"""

import numpy as np

from configs.studies.zaya_router import ARMS
from experiments import verdicts

CLAIM = (
  "Top-1 by an MLP router averaged over depth reaches a lower held-out loss than a linear router,"
  " and AdamW balances it about as evenly as the sign rule."
)
SHOWN = ("loss", "max_vio")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  bias = lambda layer: np.diff(run.layer_series(layer, "bias_max")[1])
  turns = [np.abs(np.diff(bias(layer))).mean() for layer in run.layers if len(bias(layer)) > 1]
  return {
    "loss": run.last("loss", "eval"),
    "load_entropy": run.layer_mean("load_entropy"),
    "max_vio": run.layer_mean("max_vio"),
    "bias_jerk": float(np.mean(turns)) if turns else 0.0,
  }


def verdict(table) -> str:
  """The loss decides, unless the load of AdamW is clearly less even than that of sign."""
  loss = verdicts.lower(table, "loss", "averaged", than="linear")
  even = verdicts.lower(table, "max_vio", "averaged", than="sign")
  word = "fails" if even.startswith("fails") else loss.partition(":")[0]
  means = ", ".join(f"{arm} {table.values(arm, 'loss').mean():.4f}" for arm in ARMS)
  return f"{word}: {loss}; adamw against sign {even}; mean losses {means}"
