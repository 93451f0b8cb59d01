"""Can one router that never sees the backbone decide for all layers?"""

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
  near = verdicts.within(table, "loss", "pregate", "layerwise", MARGIN)
  than_hash = verdicts.lower(table, "loss", "pregate", than="hash")
  return f"{verdicts.weakest(near, than_hash)}: {near}; {than_hash}"
