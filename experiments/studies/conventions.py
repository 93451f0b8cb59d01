"""Does it matter for the loss which of the published softmax conventions is followed?"""

from configs.studies.conventions import ARMS
from experiments import verdicts

CLAIM = (
  "The published softmax conventions end within 2 per cent of each other's held-out loss at equal"
  " active FLOPs."
)
MARGIN = 0.02


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "load_entropy": run.layer_mean("load_entropy"),
    "max_vio": run.layer_mean("max_vio"),
    "drop_fraction": run.layer_mean("drop_fraction"),
    "flops_per_token": run.environment["flops_per_token"],
  }


def verdict(table) -> str:
  """'holds' if the worst is inside the margin of the best with every seed, 'fails' if with none."""
  return verdicts.close(table, "loss", ARMS, MARGIN)
