"""Experts on four devices: chosen freely, from the best groups, or evenly from all groups.

Run:    python -m experiments.study moge_balance [--workers=2]
Expect: no imbalance between the groups of grouped_topk; the loss within a per cent of plain top-k.
"""

from configs.base import decoder, merge

K, GROUPS = 4, 4  # 16 experts, four on each device

ARMS = {
  "topk": dict(router=dict(name="topk", k=K, renormalise=False)),
  "grouped_topk": dict(router=dict(name="grouped_topk", k=K, groups=GROUPS)),
  "limited": dict(
    router=dict(name="sigmoid_topk", k=K, groups=GROUPS, groups_kept=2),
    balance=dict(switch=dict(score="sigmoid")),
  ),
}


def get_config(arm="topk"):
  """The brief recipe with fine-grained experts and one arm's router."""
  fine = merge(decoder.brief(), model=dict(moe=dict(num_experts=16, hidden=32)))
  return merge(fine, model=dict(moe=ARMS[arm]))
