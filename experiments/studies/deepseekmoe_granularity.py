"""Do finer experts make a better model at equal parameters and active FLOPs?"""

from configs.studies.deepseekmoe_granularity import ARMS
from experiments import heldout, verdicts

CLAIM = (
  "At equal parameters and active FLOPs, cutting every expert into four slices lowers the held-out"
  " loss, with a shared slice and without."
)
MASKED = (0.125, 0.25)  # of the routed experts, those most probable to a token, taken out of reach
EQUAL = 0.01  # of the FLOPs of the arm without slices


def measure(run) -> dict:
  """One row of the table, from a finished run; rises are of the loss where experts are masked."""
  free, *masked = heldout.without_the_best(run.path, (0.0, *MASKED))
  rises = {f"rise_{part}": loss - free for part, loss in zip(MASKED, masked, strict=True)}
  return {
    "loss": run.last("loss", "eval"),
    **rises,
    "max_vio": run.layer_mean("max_vio"),
    "flops_per_token": run.environment["flops_per_token"],
    "parameters": run.environment["parameters"]["total"],
  }


def verdict(table) -> str:
  """'holds' or 'fails' if both comparisons do; 'unclear' otherwise, or where FLOPs differ."""
  base = table.values("m1_s0", "flops_per_token")[0]
  excess = {arm: table.values(arm, "flops_per_token")[0] / base - 1 for arm in ARMS}
  arm = max(excess, key=lambda arm: abs(excess[arm]))
  if abs(excess[arm]) > EQUAL:
    return f"unclear: FLOPs per token of {arm} differ from m1_s0 by {100 * excess[arm]:+.2f} %"
  said = [verdicts.lower(table, "loss", f"m4_s{s}", than=f"m1_s{s}") for s in (0, 1)]
  words = {text.partition(":")[0] for text in said}
  word = words.pop() if len(words) == 1 else "unclear"
  return f"{word}: without a shared slice {said[0]}; with one {said[1]}"
