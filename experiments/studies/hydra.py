"""What are Hydra's branches worth beside its state space backbone?"""

from configs.studies.hydra import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "The whole Hydra block reaches a lower held-out loss than its bare state space backbone, than"
  " without its experts and than without its attention; branches opened one after the other come"
  " within 1 per cent of all at once."
)
MARGIN = 0.01


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "flops_per_token": run.environment["flops_per_token"],
    "parameters": run.environment["parameters"]["total"],
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """'holds' if all parts do; 'fails' if one of them fails."""
  parts = [
    verdicts.lower(table, "loss", "whole", than=arm) for arm in ("bare", "no_moe", "no_attention")
  ]
  parts.append(verdicts.within(table, "loss", "staged", "whole", MARGIN))
  return f"{verdicts.weakest(*parts)}: {' | '.join(parts)}"
