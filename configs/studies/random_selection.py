"""Who is dropped where capacity is short: the last tokens of a sequence, or random ones (2 cores).

Run:    python -m experiments.study random_selection [--workers=2]
Expect: a lower loss where the drops are random, by the paper; at this size perhaps no difference.
"""

from configs.base import decoder, merge

ARMS = {"position": "position", "random": "random"}
PAPERS = {
  "random": (
    "Random token selection: random choices are dropped instead of late ones.",
    "Kim et al. 2021 (Z-code M3), arXiv:2109.10465",
  ),
}


def get_config(arm="random"):
  """The brief recipe with one choice and slots for exactly the even load."""
  short = [dict(name="capacity", factor=1.0, order=ARMS[arm])]
  moe = dict(router=dict(name="topk", k=1), edits=short, dispatch=dict(name="gather"))
  return merge(decoder.brief(), model=dict(moe=moe, allow_noncausal=True))
