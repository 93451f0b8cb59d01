"""Do other causal routers match top-2 on held-out text at equal active FLOPs?"""

import numpy as np

from configs.studies.router_shootout import ARMS

CLAIM = "At equal active FLOPs every causal router comes within 2 per cent of top-2's loss."
MARGIN = 0.02


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "load_entropy": run.layer_mean("load_entropy"),
    "max_vio": run.layer_mean("max_vio"),
    "drop_fraction": run.layer_mean("drop_fraction"),
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """'holds' if all are inside the margin, 'fails' if one is outside by more than its spread."""
  base = table.values("topk", "loss").mean()
  excess = {arm: table.values(arm, "loss") / base - 1 for arm in ARMS if arm != "topk"}
  numbers = ", ".join(f"{arm} {100 * v.mean():+.2f} %" for arm, v in excess.items())
  outside = [arm for arm, v in excess.items() if v.mean() > MARGIN]
  clearly = [arm for arm in outside if excess[arm].mean() - np.ptp(excess[arm]) > MARGIN]
  word = "fails" if clearly else "unclear" if outside else "holds"
  return f"{word}: top-2 loss {base:.4f}; {numbers}"
