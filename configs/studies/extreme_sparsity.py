"""One expert of 32: what keeps the load of low layers even (2 CPU cores, about 40 s a run).

Run:    python -m experiments.study extreme_sparsity [--workers=2]
Expect: low layers uneven with the balance loss and with biases; better with more experts for a
        token in low layers at first; most even with the Top-1 loss, at a somewhat higher loss.
"""

from configs.base import decoder, merge

LAYERS = 6
FIRST = [4, 4, 2, 1, 1, 1]  # experts of a token by layer, not given in the paper
SWITCH = dict(switch=dict(weight=0.01, scope="step"))

ARMS = {
  "balance_loss": dict(moe=dict(router=dict(name="topk", k=1, renormalise=False), balance=SWITCH)),
  "bias": dict(
    moe=dict(router=dict(name="biased_topk", k=1), balance=dict(switch=None, sign=dict(speed=1e-2)))
  ),
  "schedule": dict(
    moe=dict(router=dict(name="topk", k=4, renormalise=False), balance=SWITCH),
    # the end of the pieces is not given either, but said to be late
    knobs=dict(k_active=dict(name="piecewise", values=[FIRST, [1] * LAYERS], until=[0.8])),
  ),
  "top1_loss": dict(
    moe=dict(
      router=dict(name="topk", k=1, renormalise=False),
      balance=dict(switch=None, top1=dict(weight=0.01)),
    )
  ),
}

PAPERS = {
  "schedule": (
    "Progressive sparsification: low layers start with more choices and end with one.",
    "Sigma-MoE-Tiny 2025, arXiv:2512.16248",
  ),
}


def get_config(arm="schedule"):
  """The brief recipe with 32 experts, one of them for a token in the end."""
  model = dict(layers=[dict(ffn="moe")] * LAYERS, moe=dict(num_experts=32))
  cfg = merge(decoder.brief(), model=model, train=dict(steps=120, eval_every=120))
  return merge(cfg, model=dict(moe=ARMS[arm]["moe"]), knobs=ARMS[arm].get("knobs", {}))
