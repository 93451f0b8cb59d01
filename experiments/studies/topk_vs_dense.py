"""Does a mixture of experts beat the dense model that costs the same per token?"""

from configs.studies.topk_vs_dense import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "Given the same text and the same active FLOPs per token, a decoder with top-2 of 16 experts"
  " reaches a lower held-out loss than dense."
)


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "bits_per_byte": run.last("bits_per_byte", "eval"),
    "flops_per_token": run.environment["flops_per_token"],
    "parameters": run.environment["parameters"]["total"],
    "tokens": run.last("tokens"),
  }


def verdict(table) -> str:
  """'holds', 'fails' or 'unclear', with the numbers it was decided on."""
  cost = [table.values(arm, "flops_per_token")[0] for arm in ("dense", "topk")]
  if abs(cost[1] / cost[0] - 1) > 0.01:
    return f"unclear: FLOPs per token differ, dense {cost[0]:.4g}, topk {cost[1]:.4g}"
  return verdicts.lower(table, "loss", "topk", than="dense")
