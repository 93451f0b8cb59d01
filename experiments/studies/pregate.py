"""Can one router that never sees the backbone decide for all layers?"""

import numpy as np

from configs.studies.pregate import ARMS  # noqa: F401  the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "Trained end to end, one small network on token ids that decides for all layers beforehand comes"
  " within 1 per cent of the held-out loss of a router in each layer, and below that of hashing."
)
MARGIN = 0.01


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "load_entropy": run.layer_mean("load_entropy"),
    "max_vio": run.layer_mean("max_vio"),
    "flops_per_token": run.environment["flops_per_token"],
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """Both halves of the claim: the weaker word of the two."""
  ours, base = (table.values(arm, "loss") for arm in ("pregate", "layerwise"))
  excess, spread = ours.mean() / base.mean() - 1, max(np.ptp(ours), np.ptp(base)) / base.mean()
  near = "holds" if excess <= MARGIN else "fails" if excess - spread > MARGIN else "unclear"
  than_hash = verdicts.lower(table, "loss", "pregate", than="hash")
  words = (near, than_hash.partition(":")[0])
  word = next(w for w in ("fails", "unclear", "holds") if w in words)
  return f"{word}: {100 * excess:+.2f} % of the layerwise loss {base.mean():.4f}; {than_hash}"
