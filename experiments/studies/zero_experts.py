"""Does a controller hold the mean number of experts, and does it pay to let tokens differ?"""

import numpy as np

from configs.studies.zero_experts import ARMS  # noqa: F401  the arms are data
from experiments import heldout, verdicts

CLAIM = (
  "With identity experts and a controller, tokens choose 4 of 16 experts on average (within 5 per"
  " cent) and not each of them 4, at a lower held-out loss than with 4 experts for every token."
)
WANTED, WITHIN = 4.0, 0.05
SHOWN = ("experts", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {"loss": run.last("loss", "eval"), **heldout.choices(run.path).numbers()}


def verdict(table) -> str:
  """'fails' if the mean is not held or every token has as many; else what the losses say."""
  mean, spread = (table.values("controlled", key) for key in ("experts", "experts_spread"))
  held = np.all(np.abs(mean / WANTED - 1) <= WITHIN) and np.all(spread > 0)
  loss = verdicts.lower(table, "loss", "controlled", than="fixed")
  free = table.values("free", "experts").mean()
  return (
    f"{loss.partition(':')[0] if held else 'fails'}: experts of a token {mean.mean():.3f}, standard"
    f" deviation {spread.mean():.3f}, without the controller {free:.3f}; {loss}"
  )
