"""Does a balance loss of narrow scope keep experts from specialising by domain?"""

import numpy as np

from configs.studies.lbl_scope import ARMS  # noqa: F401  the arms are data
from experiments import verdicts
from moejax.core.plugin import Failed
from moejax.report import domains

CLAIM = (
  "A balance loss over the whole step lets experts specialise: the mutual information of domain and"
  " expert is higher than with a loss over each sequence."
)
SHOWN = ("information", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run; bits, less what chance alone would show."""
  found = domains.of(run)
  if found is None:
    raise Failed(f"{run.path} has no line of kind domains; the corpus needs labels.")
  token_Y = found.token_Y
  bits = [
    domains.information(token_Y[:, None] * share_YU) - domains.shuffled(token_Y, share_YU)
    for share_YU in found.share_YU.values()
  ]
  return {
    "loss": run.last("loss", "eval"),
    "information": float(np.mean(bits)),
    "max_vio": run.layer_mean("max_vio"),
  }


def verdict(table) -> str:
  """Whether scope sequence has less information than scope step; scope micro_batch beside them."""
  said = verdicts.lower(table, "information", "sequence", than="step")
  between = table.values("micro_batch", "information").mean()
  return f"{said}; micro_batch {between:.4f} bits"
