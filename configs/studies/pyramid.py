"""Where a fixed number of experts should stand, and what a residual expert saves (2 CPU cores).

Run:    python -m experiments.study pyramid [--workers=2]
Expect: experts in later layers are worth more than in early ones, and a dense FFN beside one
        routed expert is worth two routed experts at half the dispatch.

PR-MoE is the arm "up": a pyramid whose layers have a shared FFN beside top-1, added as they are;
its code weighs the two by a softmax, which is the shared gate "coefficients". Every arm has 32
routed experts.
"""

from configs.base import decoder, merge

DENSE = 0
ARMS = {
  "uniform": dict(experts=(8, 8, 8, 8)),
  "up": dict(experts=(4, 4, 8, 16)),
  "down": dict(experts=(16, 8, 4, 4)),
  "first_half": dict(experts=(16, 16, DENSE, DENSE)),
  "second_half": dict(experts=(DENSE, DENSE, 16, 16)),
  "uniform_top2": dict(experts=(8, 8, 8, 8), top2=True),
  "up_top2": dict(experts=(4, 4, 8, 16), top2=True),
}

PAPERS = {
  "up": (
    "PR-MoE: more experts in later layers, each router's choice beside a dense FFN.",
    "Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596",
  ),
}


def layer(experts: int, top2: bool) -> dict:
  """A dense layer, top-2, or top-1 beside a dense FFN; all as wide for a token."""
  if experts == DENSE:
    return dict(ffn="mlp")
  if top2:
    return dict(ffn="moe", moe=dict(num_experts=experts, router=dict(name="topk", k=2)))
  shared = dict(hidden=64, gate="one")
  router = dict(name="topk", k=1, renormalise=False)
  return dict(ffn="moe", moe=dict(num_experts=experts, router=router, shared=shared))


def get_config(arm="up"):
  """The brief recipe, a little shorter, with one arm's four layers."""
  choice = {"top2": False, **ARMS[arm]}
  layers = [layer(n, choice["top2"]) for n in choice["experts"]]
  return merge(decoder.brief(), model=dict(layers=layers), train=dict(steps=120))
