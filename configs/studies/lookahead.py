"""Routers that look at later tokens: how much of their loss is left without them (2 CPU cores).

Run:    python -m experiments.study lookahead [--workers=2]
Expect: expert choice and Soft MoE lose what they saw of the answer; base and sinkhorn, which look
        ahead in training alone, lose nothing.

A language model writes without later tokens. The study predicts the same held-out tokens twice:
inside their whole sequence, and at the end of what came before them.
"""

from configs.base import decoder, merge

ONE = dict(num_experts=4, hidden=128)  # one choice of a token, instead of two of 8 x 64

ARMS = {
  "topk": dict(router=dict(name="topk", k=2)),
  "expert_choice": dict(
    router=dict(name="expert_choice", capacity_factor=2.0), balance=dict(switch=None)
  ),
  "soft": dict(
    router=dict(name="soft", capacity_factor=2.0),
    balance=dict(switch=None),
    dispatch=dict(name="einsum"),
  ),
  "base": dict(**ONE, router=dict(name="base"), balance=dict(switch=None)),
  "sinkhorn": dict(**ONE, router=dict(name="sinkhorn"), balance=dict(switch=None)),
}


def get_config(arm="topk"):
  """The brief recipe, shorter, with one arm's router."""
  model = dict(moe=ARMS[arm], allow_noncausal=True)
  return merge(decoder.brief(), model=model, train=dict(steps=120, eval_every=120))
