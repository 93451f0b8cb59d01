"""Does it change training that experts wait for the first dense FFN?"""

from configs.studies.overlap import ARMS  # the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "Shortcut-connected MoE blocks whose experts wait for the first dense FFN train to the same loss,"
  " within 0.1 per cent, as those whose order the compiler chooses."
)
MARGIN = 0.001


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {"loss": run.last("loss", "eval"), "train_loss": run.last("loss")}


def verdict(table) -> str:
  """Equal losses."""
  return verdicts.close(table, "loss", tuple(ARMS), MARGIN)
