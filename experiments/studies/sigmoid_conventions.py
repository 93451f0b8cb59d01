"""Does it matter for the loss which of the published sigmoid routers is followed?"""

import numpy as np

from configs.studies.sigmoid_conventions import ARMS
from experiments import verdicts

CLAIM = (
  "The published routers with sigmoid scores and a selection bias end within 2 per cent of each"
  " other's held-out loss."
)
MARGIN = 0.02


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  layers = run.train[-1]["layers"].values()
  return {
    "loss": run.last("loss", "eval"),
    "load_entropy": run.layer_mean("load_entropy"),
    "max_vio": run.layer_mean("max_vio"),
    "bias_max": float(np.max([layer["bias_max"] for layer in layers])),
  }


def verdict(table) -> str:
  """'holds' if the worst is inside the margin of the best with every seed, 'fails' if with none."""
  return verdicts.close(table, "loss", ARMS, MARGIN)
