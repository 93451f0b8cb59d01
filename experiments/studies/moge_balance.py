"""Is an even load of devices free, where the choice itself is even over groups of experts?"""

import numpy as np

from configs.studies.moge_balance import ARMS, GROUPS, K  # noqa: F401  the arms are data

CLAIM = (
  "Choosing equally many experts from every group removes the imbalance between devices at every"
  " step and costs less than 1 per cent of held-out loss against plain top-k."
)
MARGIN = 0.01
NOTHING = 1e-4  # loads are logged to six digits
SHOWN = ("worst_imbalance", "loss")


def imbalance(load_U, k: int, groups: int) -> float:
  """Choices of the fullest group of experts less those of the emptiest, per token.

  >>> imbalance([0.5, 0.25, 0.25, 0.0], k=2, groups=2)
  1.0
  """
  share_G = np.reshape(load_U, (groups, -1)).sum(1)
  return float(k * (share_G.max() - share_G.min()))


def measure(run) -> dict:
  """One row of the table, from a finished run; the imbalance is over all logged steps."""
  layers = [layer for row in run.train for layer in (row.get("layers") or {}).values()]
  scores = [imbalance(layer["load"], K, GROUPS) for layer in layers]
  return {
    "loss": run.last("loss", "eval"),
    "imbalance": float(np.mean(scores)),
    "worst_imbalance": float(np.max(scores)),
    "max_vio": float(np.mean([layer["max_vio"] for layer in layers])),
  }


def verdict(table) -> str:
  """'holds' if the imbalance is gone and the loss inside the margin with every seed."""
  worst = {arm: table.values(arm, "worst_imbalance").max() for arm in ARMS}
  excess_S = table.values("grouped_topk", "loss") / table.values("topk", "loss") - 1
  inside = excess_S <= MARGIN
  word = "holds" if inside.all() else "unclear" if inside.any() else "fails"
  if worst["grouped_topk"] > NOTHING or min(worst["topk"], worst["limited"]) <= NOTHING:
    word = "fails"
  numbers = ", ".join(f"{arm} {value:.4f}" for arm, value in worst.items())
  return f"{word}: worst imbalance {numbers}; loss against top-k {100 * excess_S.mean():+.2f} %"
