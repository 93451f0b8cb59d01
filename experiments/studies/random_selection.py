"""Is it better to drop random choices than the last ones of a sequence?"""

from configs.studies.random_selection import ARMS  # noqa: F401  the arms are data
from experiments import verdicts

CLAIM = (
  "With one choice a token and slots for the even load alone, dropping random choices gives a lower"
  " held-out loss than dropping the last ones of each sequence."
)


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "drop_fraction": run.layer_mean("drop_fraction"),
  }


def verdict(table) -> str:
  """The held-out losses, against the spread of the seeds."""
  return verdicts.lower(table, "loss", "random", than="position")
