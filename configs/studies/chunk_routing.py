"""One routing decision for c tokens: what it costs in loss and saves in experts (2 CPU cores).

Run:    python -m experiments.study chunk_routing [--workers=2]
Expect: the longer the chunk, the fewer experts a stretch of text needs, and the higher the loss.
"""

from configs.base import decoder, merge

# c = 1 is routed by the token itself; longer chunks by the chunk before, which is causal
ARMS = {
  "c1": dict(chunk=1, pool="first"),
  "c4": dict(chunk=4),
  "c16": dict(chunk=16),
  "c64": dict(chunk=64),
}


def get_config(arm="c4"):
  """The brief recipe with one arm's router."""
  return merge(decoder.brief(), model=dict(moe=dict(router=dict(name="chunk", k=2, **ARMS[arm]))))
