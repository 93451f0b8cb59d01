"""Are owners busier by turns when experts move to where there is room, and does training notice?"""

import numpy as np

from configs.studies.placement import ARMS  # the arms are data and live in configs/
from experiments import verdicts

CLAIM = (
  "Experts that move between owners in training, and copies of the busiest, leave the loss the same"
  " within 0.1 per cent, and the busiest owner with less above the mean; copies with the least."
)
MARGIN = 0.001
FROM = 10  # the first step that counts: loads are known by then
SHOWN = ("loss", "straggler")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  rows = [row["layers"].values() for row in run.kind("train") if row["step"] > FROM]
  straggler = np.mean([layer["straggler"] for layers in rows for layer in layers])
  moved = [layer["moved"] for row in run.kind("placement") for layer in row["layers"].values()]
  return {"loss": run.last("loss", "eval"), "straggler": float(straggler), "moved": sum(moved)}


def verdict(table) -> str:
  """Equal losses, and stragglers in their order: the weakest word of the three."""
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  moving = verdicts.lower(table, "straggler", "move", than="stay")
  copies = verdicts.lower(table, "straggler", "copy", than="move")
  return f"{verdicts.weakest(same, moving, copies)}: {same}; {moving}; {copies}"
