"""Experts cut into 1, 2 or 4 slices, with none or one of the active slices shared by all tokens.

Run:    python -m experiments.study deepseekmoe_granularity [--workers=2]
Expect: a lower loss the finer the experts. An arm m2_s1 has experts of half the width, twice as
        many of them, and one of the active ones shared; parameters and FLOPs stay. Coarser experts
        are a few units wider for what the finest router costs, rounded up in their favour.
        The table also says by how much the loss rises where an eighth or a quarter of the experts,
        those most probable to a token, are out of its reach: the less one expert can stand in for
        another, the more; the paper finds finer experts with a shared one to be the least alike.
"""

from configs.base import decoder, merge

WIDTH = {1: 68, 2: 34, 4: 16}  # of a slice


def _moe(m, shared):
  """Eight experts of 64, two of them active, cut into m slices each."""
  routed = dict(
    num_experts=8 * m - shared,
    hidden=WIDTH[m],
    router=dict(name="topk", k=2 * m - shared, renormalise=False),
  )
  return routed | (dict(shared=dict(hidden=shared * WIDTH[m], gate="one")) if shared else {})


ARMS = {f"m{m}_s{shared}": _moe(m, shared) for m in WIDTH for shared in (0, 1)}


def get_config(arm="m1_s0"):
  """The brief recipe with one arm's MoE layer."""
  return merge(decoder.brief(), model=dict(moe=ARMS[arm]), train=dict(steps=150))
