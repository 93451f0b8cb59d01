"""Are experts worth more in later layers, and is a dense FFN beside top-1 as good as top-2?"""

from configs.studies.pyramid import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "Of 32 routed experts, all in the second half of the layers reach a lower held-out loss than all"
  " in the first half, a pyramid a lower one than the same upside down, and a dense FFN beside"
  " top-1 comes within 1 per cent of top-2."
)
MARGIN = 0.01


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "parameters": run.environment["parameters"]["total"],
    "flops_per_token": run.environment["flops_per_token"],
    "max_vio": run.layer_mean("max_vio"),
  }


def verdict(table) -> str:
  """'holds' if all three parts do; 'fails' if one of them fails."""
  parts = [
    verdicts.lower(table, "loss", "second_half", than="first_half"),
    verdicts.lower(table, "loss", "up", than="down"),
    verdicts.within(table, "loss", "uniform", "uniform_top2", MARGIN),
    verdicts.within(table, "loss", "up", "up_top2", MARGIN),
  ]
  return f"{verdicts.weakest(*parts)}: {' | '.join(parts)}"
