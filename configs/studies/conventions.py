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


def get_config(arm="mixtral"):
  """The brief recipe, shorter still, with one arm's MoE layer."""
  model = dict(moe=ARMS[arm], allow_noncausal=arm in NONCAUSAL)
  return merge(decoder.brief(), model=model, train=dict(steps=100))
