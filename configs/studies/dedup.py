"""Tokens across nodes: flat, in two steps, once for a node (8 virtual CPU devices).

Run:    python -m experiments.study dedup [--workers=2]
Expect: the same loss for all, and fewer bytes between nodes the more of the choices of a token lie
        in one node. Time on links is not measured here.
"""

from configs.base import decoder, merge

ARMS = {
  "all_to_all": dict(name="all_to_all"),
  "hierarchical": dict(name="hierarchical", inner=4),
  "ragged": dict(name="ragged"),
  "dedup": dict(name="dedup", inner=4),
}


def get_config(arm="dedup"):
  """Eight devices with an expert each, in two nodes."""
  return merge(decoder.spread(), model=dict(moe=dict(dispatch=ARMS[arm])))
