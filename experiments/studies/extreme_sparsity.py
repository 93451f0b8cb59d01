"""What keeps low layers balanced when a token has one expert of 32?"""

import numpy as np

from configs.studies.extreme_sparsity import ARMS  # noqa: F401  the arms are data
from experiments import verdicts

CLAIM = (
  "At top-1 of 32 the load of the two lowest layers is more even with the Top-1 loss, and with more"
  " experts for a token at first, than with the balance loss of Switch Transformers."
)
LOW = 2  # layers
LAST = 0.1  # of the logged steps, when all layers have one expert for a token
SHOWN = ("low_max", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  loads = [run.load(layer)[1] for layer in run.layers]
  last = max(1, round(LAST * len(loads[0])))
  relative_LU = np.array([load_SU[-last:].mean(0) * load_SU.shape[1] for load_SU in loads])
  layers = run.train[-1]["layers"].values()
  return {
    "loss": run.last("loss", "eval"),
    "low_max": float(relative_LU[:LOW].max(1).mean()),
    "low_min": float(relative_LU[:LOW].min(1).mean()),
    "high_max": float(relative_LU[LOW:].max(1).mean()),
    "bias_max": max(layer.get("bias_max", 0.0) for layer in layers),
  }


def verdict(table) -> str:
  """Both halves of the claim: the weaker word of the two."""
  loss = verdicts.lower(table, "low_max", "top1_loss", than="balance_loss")
  schedule = verdicts.lower(table, "low_max", "schedule", than="balance_loss")
  return f"{verdicts.weakest(loss, schedule)}: Top-1 loss {loss}; schedule {schedule}"
