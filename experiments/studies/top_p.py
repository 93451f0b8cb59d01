"""Do tokens with a number of experts of their own need fewer than two, at no loss?"""

from configs.studies.top_p import ARMS  # noqa: F401  the arms are data
from experiments import heldout, verdicts

CLAIM = (
  "With the entropy loss, top-p ends with fewer experts for a token than without it, and with fewer"
  " than 2 on average at a held-out loss that is not higher than that of top-2."
)
SHOWN = ("experts", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {"loss": run.last("loss", "eval"), **heldout.choices(run.path).numbers()}


def verdict(table) -> str:
  """All three parts of the claim: the weakest word of them."""
  fewer = verdicts.lower(table, "experts", "top_p_entropy", than="top_p")
  below = verdicts.lower(table, "experts", "top_p_entropy", than="top_2")
  loss = verdicts.lower(table, "loss", "top_2", than="top_p_entropy")
  kept = "fails" if loss.startswith("holds") else "holds"
  word = verdicts.weakest(fewer, below, kept)
  return f"{word}: {fewer}; {below}; top-2's loss is lower: {loss}"
