"""A number of experts for each token of its own, against two for all (2 CPU cores, 30 s a run).

Run:    python -m experiments.study top_p [--workers=2]
Expect: with the entropy loss tokens come to need fewer experts than without; hard tokens more than
        easy ones.
"""

from configs.base import decoder, merge

TOP_P = dict(name="top_p", k=8, threshold=0.4)

ARMS = {
  "top_2": dict(router=dict(name="topk", k=2)),
  "top_p": dict(router=TOP_P),
  "top_p_entropy": dict(router=TOP_P, balance=dict(entropy=dict(weight=1e-4))),
  "relu": dict(
    router=dict(name="relu", k=8), balance=dict(switch=None, sparsity=dict(k=2.0, start=1e-4))
  ),
}


def get_config(arm="top_p_entropy"):
  """The brief recipe with one arm's router."""
  train = dict(steps=150, eval_every=150)
  return merge(decoder.brief(), model=dict(moe=ARMS[arm]), train=train)
