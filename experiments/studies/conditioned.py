"""Do experts divide by a condition once the router is told of it, and does that lower the loss?"""

import numpy as np

from configs.studies.conditioned import ARMS, KINDS
from experiments import verdicts

CLAIM = (
  "A router that is told the kind of a document uses experts that tell more of that kind (mutual"
  " information) than top-2's do, at a held-out loss that is not above top-2's."
)


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  found = run.kind("domains")[-1]
  kind = lambda label: next((i for i, kind in enumerate(KINDS) if label in kind), len(KINDS))
  kind_Y, tokens_Y = np.array([kind(label) for label in found["labels"]]), found["tokens"]
  each = [information(np.array(layer), kind_Y, tokens_Y) for layer in found["layers"].values()]
  return {"loss": run.last("loss", "eval"), "information": float(np.mean(each))}


def information(share_YU, kind_Y, tokens_Y) -> float:
  """Bits that a choice tells of the kind of its document.

  >>> apart, same = np.eye(2), np.full((2, 2), 0.5)
  >>> [information(share_YU, np.arange(2), [5, 5]) for share_YU in (apart, same)]
  [1.0, 0.0]
  """
  both_YU = share_YU * np.asarray(tokens_Y, float)[:, None] / np.sum(tokens_Y)
  both_KU = np.stack([both_YU[kind_Y == k].sum(0) for k in sorted(set(kind_Y))])
  apart_KU = both_KU.sum(1, keepdims=True) * both_KU.sum(0, keepdims=True)
  seen_KU = both_KU > 0
  return float(np.sum(both_KU[seen_KU] * np.log2(both_KU[seen_KU] / apart_KU[seen_KU])))


def verdict(table) -> str:
  """'holds' if both ways tell more by more than the spread, and neither is clearly worse."""
  words, parts = set(), []
  for arm in ARMS:
    if arm == "topk":
      continue
    more = verdicts.lower(table, "information", "topk", than=arm)
    worse = verdicts.lower(table, "loss", "topk", than=arm).split(":")[0] == "holds"
    words.add("fails" if worse else more.split(":")[0])
    gap = table.values(arm, "loss").mean() - table.values("topk", "loss").mean()
    parts.append(f"{more.partition(': ')[2]}, loss {gap:+.4f}")
  word = next(word for word in ("fails", "unclear", "holds") if word in words)
  return f"{word}: {'; '.join(parts)}"
