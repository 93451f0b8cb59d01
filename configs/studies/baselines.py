"""The classic routers side by side at equal active FLOPs (2 CPU cores, about half a minute a run).

Run:    python -m experiments.study baselines --workers=2
Expect: hash routing worst, because it cannot learn; one choice in the middle, however it is
        balanced; two choices or more best. All arms have the same expert weights in total and per
        token. Soft MoE and expert choice, which see later tokens, are no arms: their loss on text
        would not be a fair one. base and sinkhorn see a whole sequence in training alone.
"""

from configs.base import decoder, merge

ONE = dict(num_experts=8, hidden=128)  # one choice of 128 hidden units
TWO = dict(num_experts=16, hidden=64)  # two of 64
STEPS, LEARNING = 120, 30  # all, and those in which the light router of StableMoE learns

ARMS = {
  "hash": dict(**ONE, router=dict(name="hash"), balance=dict(switch=None)),
  "switch": dict(**ONE, router=dict(name="topk", k=1, renormalise=False, jitter=0.01)),
  "base": dict(**ONE, router=dict(name="base"), balance=dict(switch=None)),
  "sinkhorn": dict(**ONE, router=dict(name="sinkhorn"), balance=dict(switch=None)),
  "stable": dict(
    **ONE,
    router=dict(name="stable"),
    balance=dict(switch=None, stable=dict(weight=0.01), distill=dict(weight=1.0)),
  ),
  # Both choices of a token stand in one queue by position: with first choices before all second
  # ones, as in GShard, a later token could take the place of an earlier one.
  "gshard": dict(
    **TWO, router=dict(name="topk", k=2), edits=[dict(name="capacity", factor=1.25)],
  ),
  "deepseek": dict(  # three fine-grained experts of 31, and the 32nd for every token
    num_experts=31,
    hidden=32,
    router=dict(name="topk", k=3, renormalise=False),
    shared=dict(hidden=32),
  ),
}  # fmt: skip
STAGES = [
  dict(steps=LEARNING),
  dict(
    steps=STEPS - LEARNING,
    trainable=r"^(?!stable/)(?!.*/light_R)",  # the light router and its table stay as they are
    changes={"model.moe.router.routed_by": "light", "model.moe.balance": {}},
  ),
]


def get_config(arm="switch"):
  """The brief recipe with one arm's MoE layer."""
  model = dict(moe=ARMS[arm], allow_noncausal=arm in ("base", "sinkhorn"))
  cfg = merge(decoder.brief(), model=model, train=dict(steps=STEPS))
  return merge(cfg, stages=STAGES) if arm == "stable" else cfg
