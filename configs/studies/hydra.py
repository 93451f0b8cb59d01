"""Hydra's branches on a state space backbone: all, all in stages, and some left out (2 CPU cores).

Run:    python -m experiments.study hydra [--workers=2]
Expect: the whole block below the bare backbone, and each branch worth something.

Layers differ as in the paper: sparse attention (a window of 16 tokens, 2 anchors) in every second
one, experts that are chosen for 4 tokens at once, a workspace and a product-key memory. Branches
start half open, since runs are short.
"""

from configs.base import decoder, merge

BRANCHES = {
  "attention": dict(heads=2, kv_heads=1, head_width=32, window=16, anchors=2),
  "workspace": dict(slots=4, width=16),
  "memory": dict(name="pkm", keys=16, heads=2, k=8, key_width=16),
  "moe": dict(num_experts=8, hidden=64, router=dict(name="chunk", k=2, chunk=4)),
}
LAYERS, STEPS = 2, 120

ARMS = {
  "bare": (),
  "no_attention": ("workspace", "memory", "moe"),
  "no_moe": ("attention", "workspace", "memory"),
  "whole": tuple(BRANCHES),
  "staged": tuple(BRANCHES),
}
OPENED = {"attention": 0.0, "workspace": 0.1, "memory": 0.2, "moe": 0.2}  # part of the run


def layer(number: int, branches) -> dict:
  """One Hydra block; attention stands in every second one."""
  there = [name for name in branches if name != "attention" or number % 2]
  ssm = dict(hidden=64, states=4)
  return dict(name="hydra", gate_start=0.0, ssm=ssm, **{name: BRANCHES[name] for name in there})


def get_config(arm="whole"):
  """The brief recipe with Hydra blocks of one arm's branches."""
  layers = [layer(number, ARMS[arm]) for number in range(LAYERS)]
  knobs = {}
  if arm == "staged":
    opened = {name: at for name, at in OPENED.items() if at}
    knobs = {
      f"open_{name}": dict(name="piecewise", values=[0.0, 1.0], until=[at])
      for name, at in opened.items()
    }
  train = dict(steps=STEPS, eval_every=STEPS, batch_size=8)
  return merge(decoder.brief(), model=dict(layers=layers), knobs=knobs, train=train)
