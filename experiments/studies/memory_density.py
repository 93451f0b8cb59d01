"""Do more rows for a token help more than a larger table?"""

import numpy as np

from configs.studies.memory_density import ARMS  # noqa: F401  the arms are data
from experiments import verdicts

CLAIM = (
  "At equal active FLOPs, an UltraMemV2 memory with twice the rows for a token reaches a lower"
  " held-out loss than one with twice the table."
)
SHOWN = ("slots_hit", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  memories = run.train[-1]["memories"].values()
  return {
    "loss": run.last("loss", "eval"),
    "flops_per_token": run.environment["flops_per_token"],
    "parameters": run.environment["parameters"]["total"],
    "slots_hit": float(np.mean([layer["hit"] for layer in memories])),
  }


def verdict(table) -> str:
  """'holds', 'fails' or 'unclear', with the loss of neither beside it."""
  base = table.values("base", "loss").mean()
  return f"{verdicts.lower(table, 'loss', 'more_k', than='more_rows')}; base {base:.4f}"
