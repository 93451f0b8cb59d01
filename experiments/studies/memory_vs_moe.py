"""Does a memory match fine-grained experts of equal cost, and does it read fewer weights?"""

import numpy as np

from configs.studies.memory_vs_moe import ARMS  # noqa: F401  the arms are data
from moejax.core import config
from moejax.perf import flops

CLAIM = (
  "At equal parameters and active FLOPs, an UltraMemV2 memory beside a smaller FFN comes within 1"
  " per cent of the held-out loss of 8 of 32 fine-grained experts, and reads under two thirds of"
  " the weights for a batch of 16 tokens."
)
BATCH, MARGIN, LESS = 16, 0.01, 2 / 3
SHOWN = ("weights_read", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  memories = run.train[-1]["memories"].values()
  mean_of = lambda key: float(np.mean([layer[key] for layer in memories])) if memories else None
  return {
    "loss": run.last("loss", "eval"),
    "flops_per_token": run.environment["flops_per_token"],
    "parameters": run.environment["parameters"]["total"],
    "weights_read": flops.touched(config.resolve(run.config).model, BATCH),
    "slots_hit": mean_of("hit"),
    "slot_kl": mean_of("kl"),
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """'holds' with both halves of the claim, 'fails' where one is missed by more than its spread."""
  mean = lambda arm, column: table.values(arm, column).mean()
  for column in ("flops_per_token", "parameters"):
    apart = max(abs(mean(arm, column) / mean("moe", column) - 1) for arm in ARMS)
    if apart > 0.02:
      return f"unclear: {column} differs by {100 * apart:.1f} % between arms"
  excess = {arm: table.values(arm, "loss") / mean("moe", "loss") - 1 for arm in ARMS}
  read = {arm: mean(arm, "weights_read") / mean("moe", "weights_read") for arm in ARMS}
  ours = excess["ultramem"]
  word = "holds" if ours.mean() <= MARGIN else "unclear"
  if ours.mean() - np.ptp(ours) > MARGIN or read["ultramem"] >= LESS:
    word = "fails"
  numbers = ", ".join(
    f"{arm} {100 * excess[arm].mean():+.2f} % loss and {100 * read[arm]:.0f} % of the weights"
    for arm in ARMS
    if arm != "moe"
  )
  return f"{word}: against experts of loss {mean('moe', 'loss'):.4f}: {numbers}"
