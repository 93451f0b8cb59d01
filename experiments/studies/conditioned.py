"""Do experts divide by a condition once the router is told of it, and does that lower the loss?"""

import numpy as np

from configs.studies.conditioned import ARMS, KINDS
from experiments import verdicts
from moejax.report import domains

CLAIM = (
  "A router that is told the kind of a document uses experts that tell more of that kind (mutual"
  " information) than top-2's do, at a held-out loss that is not above top-2's."
)
SHOWN = ("information", "loss")


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  found = run.kind("domains")[-1]
  kind = lambda label: next((i for i, kind in enumerate(KINDS) if label in kind), len(KINDS))
  kind_Y = np.array([kind(label) for label in found["labels"]])
  tokens_Y = np.array(found["tokens"], float)
  tables = [by_kind(layer, kind_Y, tokens_Y) for layer in found["layers"].values()]
  return {
    "loss": run.last("loss", "eval"),
    "information": float(np.mean(list(map(domains.information, tables)))),
  }


def by_kind(share_YU, kind_Y, tokens_Y) -> np.ndarray:
  """How many choices each kind of document made of each id, from the shares of its domains.

  >>> by_kind(np.eye(2), np.array([0, 0]), np.array([5, 3])).tolist()
  [[5.0, 3.0]]
  """
  count_YU = np.asarray(share_YU) * tokens_Y[:, None]
  return np.stack([count_YU[kind_Y == kind].sum(0) for kind in np.unique(kind_Y)])


def verdict(table) -> str:
  """'holds' if both ways tell more by more than the spread, and neither is clearly worse."""
  words, parts = [], []
  for arm in ARMS:
    if arm == "topk":
      continue
    more = verdicts.lower(table, "information", "topk", than=arm)
    worse = verdicts.lower(table, "loss", "topk", than=arm).split(":")[0] == "holds"
    words.append("fails" if worse else more)
    gap = table.values(arm, "loss").mean() - table.values("topk", "loss").mean()
    parts.append(f"{more.partition(': ')[2]}, loss {gap:+.4f}")
  return f"{verdicts.weakest(*words)}: {'; '.join(parts)}"
