"""Identity experts among the others, and a controller of how often (2 CPU cores, 30 s a run).

Run:    python -m experiments.study zero_experts [--workers=2]
Expect: with the controller 4 of a token's 6 choices are experts, on average and not for each token;
        without it the mean goes where it will.
"""

from configs.base import decoder, merge

# the gates are scaled by 2, as experts are cut in two (half the usual hidden)
SIX = dict(router=dict(name="biased_topk", k=6, scale=2.0), virtual=["identity"] * 8)

ARMS = {
  "fixed": dict(
    router=dict(name="biased_topk", k=4, scale=2.0), balance=dict(switch=None, pid=dict())
  ),
  "controlled": dict(SIX, balance=dict(switch=None, pid=dict(expert_share=4 / 6, virtual="held"))),
  "free": dict(SIX, balance=dict(switch=None)),
}

PAPERS = {
  "controlled": (
    "LongCat-Flash: identity experts among the others, and a controller of the mean number.",
    "LongCat-Flash 2025, arXiv:2509.01322",
  ),
}


def get_config(arm="controlled"):
  """The brief recipe with 16 narrow experts, about four of them for a token."""
  moe = dict(num_experts=16, hidden=32, **ARMS[arm])
  return merge(decoder.brief(), model=dict(moe=moe), train=dict(steps=150, eval_every=150))
