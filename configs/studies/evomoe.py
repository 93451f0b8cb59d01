"""Top-1 or a gate that goes from dense to sparse, from scratch or from one expert (2 CPU cores).

Run:    python -m experiments.study evomoe [--workers=2]
Expect: the dense-to-sparse gate on spawned experts lowest; its mean number of active experts falls
        to one.
"""

from configs.base import decoder, merge

STEPS, FIRST = 200, 60  # all steps, and those with a single expert
TOP1 = dict(router=dict(name="topk", k=1, renormalise=False))
DTS = dict(router=dict(name="dense_to_sparse", k=8), balance=dict(switch=None, dts=dict()))


def cooling(first):
  """From 2 to 0.3 between step `first` and step 140, where the gate becomes top-1."""
  temperature = dict(name="exponential", peak=2.0, end=0.3, warmup_steps=first)
  return dict(
    temperature=dict(temperature, decay_steps=140 - first),
    hard=dict(name="piecewise", values=[0.0, 1.0], until=[0.7]),
  )


ARMS = {
  "top1": dict(moe=TOP1),
  "dts": dict(moe=DTS, knobs=cooling(0)),
  "diversified_top1": dict(moe=TOP1, spawned=True),
  "diversified_dts": dict(moe=DTS, knobs=cooling(FIRST), spawned=True),
}

PAPERS = {
  "diversified_dts": (
    "EvoMoE: experts that start as copies of one, then a gate that goes from dense to sparse.",
    "Nie et al. 2021 (EvoMoE), arXiv:2112.14397",
  ),
}


def get_config(arm="top1"):
  """The brief recipe; spawned arms train one dense FFN first, at equal steps in all."""
  chosen = dict(ARMS[arm])
  spawned, moe = chosen.pop("spawned", False), chosen.pop("moe")
  cfg = merge(decoder.brief(), model=dict(moe=moe), **chosen)
  if not spawned:
    return cfg
  layer = cfg.to_dict()["model"]["moe"]
  cfg = merge(cfg, model=dict(mlp=dict(hidden=layer["hidden"]), layers=[dict(ffn="mlp")] * 3))
  spawn = dict(name="spawn", moe=layer, redrawn=0.2)
  return merge(cfg, stages=[dict(steps=FIRST), dict(steps=STEPS - FIRST, transform=spawn)])
