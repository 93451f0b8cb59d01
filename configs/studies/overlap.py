"""ScMoE whose experts wait for the first dense FFN, and one left to the compiler (8 CPU devices).

Run:    python -m experiments.study overlap [--workers=2]
        with the extra aot, for the order that the compiler of a TPU makes of it
Expect: the same loss, and dense matmuls under both exchanges. The time that this saves needs a
        machine with links.
"""

from configs.base import decoder, merge

ARMS = {"free": False, "overlap": True}
PAPERS = {
  "overlap": (
    "Single-batch overlap: dense work lies under both ways of the exchange.",
    "Meituan LongCat Team 2025 (LongCat-Flash), arXiv:2509.01322",
  ),
}


def get_config(arm="overlap"):
  """Two shortcut blocks, all_to_all over eight devices with an expert each."""
  return merge(
    decoder.spread(),
    model=dict(
      moe=dict(dispatch=dict(name="all_to_all")),
      layers=[dict(name="shortcut", overlap=ARMS[arm])] * 2,
    ),
  )
