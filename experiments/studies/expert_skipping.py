"""Are the second experts with small gates the ones that a trained model can do without?"""

import numpy as np

from configs.studies.expert_skipping import ARMS  # noqa: F401  the arms are data

CLAIM = (
  "In a trained top-2 model, skipping the second experts whose gate is less than half the first"
  " one's costs less held-out loss per skipped expert than skipping all second experts."
)
SHOWN = ("skipped", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  skipped = run.layer_mean("skip_fraction")
  return {"loss": run.last("loss", "eval"), "skipped": skipped}


def verdict(table) -> str:
  """'holds' if small gates cost less per skipped expert with every seed, 'fails' if with none."""
  cost = {}
  for arm in ("small", "all"):
    excess_S = table.values(arm, "loss") - table.values("none", "loss")
    cost[arm] = excess_S / np.maximum(table.values(arm, "skipped"), 1e-9)
  less = cost["small"] < cost["all"]
  word = "holds" if less.all() else "unclear" if less.any() else "fails"
  parts = [
    f"{arm} {value_S.mean():+.4f} ({value_S.min():+.4f} to {value_S.max():+.4f}) with"
    f" {100 * table.values(arm, 'skipped').mean():.0f} % skipped"
    for arm, value_S in cost.items()
  ]
  return f"{word}: loss per skipped expert, {'; '.join(parts)}"
