"""One router for all layers, apart from the backbone, against a router in each (2 CPU cores).

Run:    python -m experiments.study pregate [--workers=2]
Expect: pregate within a few per cent of layerwise, and below hash; what one layer chooses tells all
        about the next one with pregate and with hash, and something with layerwise.
"""

from configs.base import decoder, merge

ARMS = {
  "layerwise": dict(name="topk", k=1, renormalise=False),
  "pregate": dict(name="pregate", k=1),
  "hash": dict(name="hash", k=1),
}


def get_config(arm="layerwise"):
  """The brief recipe with one expert of double width per token, and one arm's router."""
  changes: dict = dict(hidden=128, router=ARMS[arm])
  if arm == "hash":  # nothing there learns to be even
    changes["balance"] = dict(switch=None)
  return merge(decoder.brief(), model=dict(moe=changes))
