"""Do easy tokens leave experts out where they may?"""

import numpy as np

from configs.studies.null_experts import ARMS  # noqa: F401  the arms are data
from experiments import heldout

CLAIM = (
  "With a null expert in the pool, tokens that are easier to predict than the median choose fewer"
  " real experts than the harder ones."
)
SHOWN = ("experts_easy", "experts_hard", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {"loss": run.last("loss", "eval"), **heldout.choices(run.path).numbers()}


def verdict(table) -> str:
  """'holds' if hard tokens have more by more than the spread over seeds, 'fails' if fewer."""
  gap = {
    arm: table.values(arm, "experts_hard") - table.values(arm, "experts_easy")
    for arm in ("null", "identity")
  }
  mean, spread = gap["null"].mean(), np.ptp(gap["null"])
  word = "holds" if mean > spread else "fails" if mean < -spread else "unclear"
  word = word if len(gap["null"]) > 1 else "unclear"
  return (
    f"{word}: hard tokens have {mean:+.4f} experts more than easy ones, spread {spread:.4f}, of"
    f" {table.values('null', 'experts').mean():.3f}; identity experts {gap['identity'].mean():+.4f}"
    f" of {table.values('identity', 'experts').mean():.3f}"
  )
