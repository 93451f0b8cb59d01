"""Are experts of one's own beside shared ones better than all shared, or none?"""

import numpy as np

from configs.studies.moiie import ARMS, INTERNET  # noqa: F401  the arms are data, in configs/
from experiments import verdicts

CLAIM = (
  "With a quarter of the experts for each of two kinds of text and half for both, the held-out loss"
  " is below that of experts for both alone and of experts for one kind alone."
)


def measure(run) -> dict:
  """One row of the table: losses by modality, and what part of the choices shared experts take."""
  found = run.kind("domains")[-1]
  first_Y = np.array([label in INTERNET for label in found["labels"]])
  tokens_Y = np.array(found["tokens"], float)
  loss_of = lambda is_Y: float(np.average(np.array(found["loss"])[is_Y], weights=tokens_Y[is_Y]))
  row = {
    "loss": run.last("loss", "eval"),
    "loss_internet": loss_of(first_Y),
    "loss_others": loss_of(~first_Y),
  }
  own = run.config["model"]["layers"][0]["ffn"]["router"].get("own", (0, 0))
  for name, is_Y in (("internet", first_Y), ("others", ~first_Y)):
    row[f"shared_{name}"] = _shared(found["layers"], tokens_Y * is_Y, own)
  return row


def _shared(layers, weight_Y, own) -> float:
  """The part of choices that fall on experts of both modalities, mean over layers."""
  parts = []
  for share_YU in map(np.array, layers.values()):
    E = share_YU.shape[1]
    first, last = (round(share * E) for share in own)
    parts.append(weight_Y @ share_YU[:, first : E - last].sum(1) / weight_Y.sum())
  return float(np.mean(parts))


def verdict(table) -> str:
  """'holds' if it is lower than both by more than the spread over seeds."""
  found = [verdicts.lower(table, "loss", "moiie", than=arm) for arm in ("vanilla", "disjoint")]
  return f"{verdicts.weakest(*found)}: {'; '.join(text.partition(': ')[2] for text in found)}"
