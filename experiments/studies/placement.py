"""Are owners more even when experts move to where there is room, and does training notice?

Stragglers are compared seed by seed: arms of one seed make the same choices.
"""

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
  moving, copies = lower(table, "move", than="stay"), lower(table, "copy", than="move")
  return f"{verdicts.weakest(same, moving, copies)}: {same}; {moving}; {copies}"


def lower(table, arm: str, than: str) -> str:
  """Whether the busiest owner of `arm` has less with every seed.

  >>> one = lambda s: [{"arm": a, "seed": s, "straggler": x} for a, x in (("a", 1.0), ("b", 2.0))]
  >>> rows = one(0) + one(1)
  >>> lower(verdicts.Table(rows), "a", than="b")
  'holds: straggler a 1.000, b 2.000; 1.000 to 1.000 less over 2 seeds'
  """
  a_S, b_S = (table.values(name, "straggler") for name in (arm, than))
  gap_S = b_S - a_S
  word = "unclear" if len(gap_S) < 2 else "holds" if (gap_S > 0).all() else "fails"
  word = "unclear" if word == "fails" and (gap_S > 0).any() else word
  return (
    f"{word}: straggler {arm} {a_S.mean():.3f}, {than} {b_S.mean():.3f}; {gap_S.min():.3f} to"
    f" {gap_S.max():.3f} less over {len(gap_S)} seeds"
  )
