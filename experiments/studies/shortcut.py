"""Does it cost quality to add the output of the experts later in the block?"""

import numpy as np

from configs.studies.shortcut import ARMS  # noqa: F401  the arms are data and live in configs/

CLAIM = (
  "At equal FLOPs and parameters a decoder of shortcut-connected MoE blocks comes within 1 per cent"
  " of the held-out loss of the same parts in turn."
)
MARGIN = 0.01


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {
    "loss": run.last("loss", "eval"),
    "flops_per_token": run.environment["flops_per_token"],
    "parameters": run.environment["parameters"]["total"],
    "tokens_per_s": run.last("tokens_per_s"),
  }


def verdict(table) -> str:
  """'holds' inside the margin, 'fails' outside it by more than the spread over seeds."""
  for column in ("flops_per_token", "parameters"):
    serial, shortcut = (table.values(arm, column)[0] for arm in ("serial", "shortcut"))
    if serial != shortcut:
      return f"unclear: {column} differ, serial {serial:.6g}, shortcut {shortcut:.6g}"
  serial, shortcut = (table.values(arm, "loss") for arm in ("serial", "shortcut"))
  excess = shortcut.mean() / serial.mean() - 1
  spread = max(np.ptp(serial), np.ptp(shortcut)) / serial.mean()
  word = (
    "holds" if abs(excess) <= MARGIN else "fails" if abs(excess) - spread > MARGIN else "unclear"
  )
  return (
    f"{word}: loss serial {serial.mean():.4f}, shortcut {shortcut.mean():.4f}"
    f" ({100 * excess:+.2f} %, spread over {len(serial)} seeds {100 * spread:.2f} %)"
  )
