"""Experts that do nothing, for tokens that need nothing (2 CPU cores, about 30 s a run).

Run:    python -m experiments.study null_experts [--workers=2]
Expect: tokens that are easy to predict choose fewer real experts than hard ones.
"""

from configs.base import decoder, merge

ARMS = {
  # Uni-MoE-2.0: probabilities up to 0.7 over experts and a null one, and over those chosen and the
  # shared expert together
  "null": dict(
    router=dict(name="top_p", k=9, threshold=0.7, renormalise=True),
    virtual=["zero"],
    shared=dict(hidden=32, gate="chosen"),
    balance=dict(switch=dict(weight=0.025, score="chosen")),
  ),
  # LongCat-Flash, with as many experts as the null arm has before it has learnt: 0.7 of 9 ids
  "identity": dict(
    router=dict(name="biased_topk", k=7, scale=2.0),
    virtual=["identity"] * 2,
    shared=dict(hidden=32),
    balance=dict(switch=None, pid=dict(expert_share=6 / 7, virtual="held")),
  ),
}

PAPERS = {
  "null": (
    "Dynamic capacity: top-p over experts and a null one, under one softmax with the shared one.",
    "Uni-MoE-2.0 2025, arXiv:2511.12609",
  ),
}


def get_config(arm="null"):
  """The brief recipe with narrow experts and one arm's layer."""
  moe = dict(hidden=32, **ARMS[arm])
  return merge(decoder.brief(), model=dict(moe=moe), train=dict(steps=150, eval_every=150))
