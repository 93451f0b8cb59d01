"""The published routers with sigmoid scores and a selection bias, side by side (2 CPU cores).

Run:    python -m experiments.study sigmoid_conventions [--workers=2]
Expect: losses within 2 per cent of each other: a limit on groups, the rule that moves the bias and
        small extra losses matter little for what is learnt.

Each arm has 16 narrow experts, four of them and a shared one for a token. Gates are scaled by 2,
about the root of the number of choices: so the published scales (2.5 of 8, 2.446 of 6 choices) keep
the routed output as large as a dense FFN's. Biases move by 0.01 a step: runs are short, and 0.001,
as published, would not reach balance in them.
"""

from configs.base import decoder, merge

ROUTER = dict(name="sigmoid_topk", k=4, scale=2.0)
GROUPS = dict(groups=4, groups_kept=2)
SEQUENCE = dict(scope="sequence", score="sigmoid", weight=1e-4)
SPEED = dict(speed=1e-2)

ARMS = {
  "deepseek_v3": dict(router=dict(ROUTER, **GROUPS), balance=dict(switch=SEQUENCE, sign=SPEED)),
  "kimi_k2": dict(router=ROUTER, balance=dict(switch=SEQUENCE, sign=SPEED)),
  "moonlight": dict(router=ROUTER, balance=dict(switch=SEQUENCE, zero_mean=SPEED)),
  "ling": dict(
    router=dict(ROUTER, **GROUPS),
    balance=dict(switch=None, zero_mean=SPEED, router_z=dict(weight=3.5e-6)),
  ),
}

PAPERS = {
  "deepseek_v3": (
    "DeepSeek-V3: groups of experts, a bias moved by signs, a small loss per sequence.",
    "DeepSeek-AI 2024, arXiv:2412.19437",
  ),
  "kimi_k2": (
    "Kimi K2: the router of DeepSeek-V3 without groups, over more and sparser experts.",
    "Moonshot AI 2025, arXiv:2507.20534",
  ),
  "moonlight": (
    "Moonlight: no groups, and biases whose mean stays where it is.",
    "Moonshot AI 2025, arXiv:2502.16982",
  ),
  "ling": (
    "Ling 2.0: groups, biases of unmoved mean, a z-loss in place of a balance loss.",
    "Ling Team 2025, arXiv:2510.22115",
  ),
}


def get_config(arm="deepseek_v3"):
  """The brief recipe with one arm's router and balance."""
  shared = dict(hidden=32, gate="one")
  moe = dict(num_experts=16, hidden=32, shared=shared, **ARMS[arm])
  return merge(decoder.brief(), model=dict(moe=moe), train=dict(steps=120, eval_every=120))
