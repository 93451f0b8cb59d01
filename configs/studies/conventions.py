"""The published softmax routers, each with its own gates, drops, losses and shared experts.

Run:    python -m experiments.study conventions [--workers=2]
Expect: losses within 2 per cent of each other. The experts of all arms have the same parameters,
        and those of a token cost the same; a router of 16 experts costs a hundredth of the model
        more than one of 8. The capacity of gshard, vmoe and swin_moe looks at later tokens of the
        sequence, as in their papers.
"""

from configs.base import decoder, merge

COARSE = dict(num_experts=4, hidden=128)  # for one choice: half the experts, twice as wide
FINE = dict(num_experts=16, hidden=32)  # twice the experts, half as wide
NONCAUSAL = ("gshard", "vmoe", "swin_moe")
IMPORTANCE_AND_LOAD = dict(switch=None, importance=dict(weight=5e-3), load=dict(weight=5e-3))

ARMS = {
  "switch": dict(
    **COARSE,
    router=dict(name="topk", k=1, renormalise=False, jitter=1e-2),
    edits=[dict(name="capacity", factor=1.25)],
  ),
  "gshard": dict(  # 2 tokens / experts slots are a factor of 1 where each token has two choices
    router=dict(name="topk", k=2),
    edits=[dict(name="second_expert"), dict(name="capacity", factor=1.0, order="choice_major")],
  ),
  "mixtral": dict(router=dict(name="topk", k=2, softmax="chosen")),
  "qwen2": dict(
    **FINE,
    router=dict(name="topk", k=2, renormalise=False),
    shared=dict(hidden=64, gate="sigmoid"),
  ),
  "qwen3": dict(**FINE, router=dict(name="topk", k=4), balance=dict(switch=dict(scope="step"))),
  "olmoe": dict(
    **FINE,
    router=dict(name="topk", k=4, renormalise=False),
    balance=dict(router_z=dict(weight=1e-3)),
  ),
  "vmoe": dict(
    router=dict(name="noisy_topk", k=2, noise="fixed", softmax="all"),
    edits=[dict(name="capacity", factor=1.05, order="token_gate")],
    balance=IMPORTANCE_AND_LOAD,
  ),
  "swin_moe": dict(
    **COARSE,
    router=dict(name="cosine", k=1, rank=8, renormalise=False),
    edits=[dict(name="capacity", factor=1.25, order="token_gate")],
    balance=IMPORTANCE_AND_LOAD,
  ),
  "deepseekmoe": dict(
    num_experts=15,
    hidden=32,
    router=dict(name="topk", k=3, renormalise=False),
    shared=dict(hidden=32, gate="one"),
    balance=dict(switch=dict(weight=3e-3), expert_groups=dict(groups=3, weight=0.05)),
  ),
}

PAPERS = {  # what of an arm is published under its name
  "switch": (
    "Switch: one choice, weighed by its probability; jitter; capacity by position.",
    "Fedus et al. 2021, arXiv:2101.03961",
  ),
  "gshard": (
    "GShard top-2: a random second expert; capacity for first choices before second ones.",
    "Lepikhin et al. 2020, arXiv:2006.16668",
  ),
  "mixtral": (
    "Mixtral: softmax over the two chosen, dropless.",
    "Jiang et al. 2024, arXiv:2401.04088",
  ),
  "qwen2": (
    "Qwen2-MoE: gates as they are, beside a gated shared expert.",
    "Yang et al. 2024, arXiv:2407.10671",
  ),
  "qwen3": (
    "Qwen3-MoE: renormalised gates, no shared expert.",
    "Yang et al. 2025, arXiv:2505.09388",
  ),
  "olmoe": (
    "OLMoE: many small experts, gates as they are, the z-loss.",
    "Muennighoff et al. 2024, arXiv:2409.02060",
  ),
  "vmoe": (
    "V-MoE: noisy top-k, batch-prioritised capacity, importance and load losses.",
    "Riquelme et al. 2021, arXiv:2106.05974",
  ),
  "swin_moe": (
    "Swin-MoE: cosine router, batch-prioritised capacity.",
    "Liu et al. 2022, arXiv:2111.09883; Hwang et al. 2022 (Tutel), arXiv:2206.03382",
  ),
  "deepseekmoe": (
    "DeepSeekMoE: fine-grained experts, gates as they are, beside shared ones.",
    "Dai et al. 2024, arXiv:2401.06066",
  ),
}


def get_config(arm="mixtral"):
  """The brief recipe, shorter still, with one arm's MoE layer."""
  model = dict(moe=ARMS[arm], allow_noncausal=arm in NONCAUSAL)
  return merge(decoder.brief(), model=model, train=dict(steps=100))
