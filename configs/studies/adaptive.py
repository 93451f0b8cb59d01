"""Ways to share the work on an expert, from one layout of the weights (8 virtual CPU devices).

Run:    python -m experiments.study adaptive [--workers=2]
Expect: the same loss for every r, and bytes that are exactly those of Tutel's formulas. How long
        they take on links is not measured here; experiments/studies/adaptive.py asks a cost model.
"""

from configs.base import decoder, merge

ARMS = {"r0": 0, "r1": 1, "r2": 2, "r4": 4}
PAPERS = {
  "r1": (
    "Coordinated communication: only devices of one place among the slices exchange tokens.",
    "Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596",
  ),
  "r4": (
    "Expert slicing: every device has a slice of the width of its experts, and no other.",
    "Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596",
  ),
}


def get_config(arm="r1"):
  """Experts over two devices, the width of each over four, tokens over all eight."""
  moe = dict(dispatch=dict(name="adaptive", r=ARMS[arm]))
  return merge(decoder.spread(), model=dict(moe=moe), mesh="expert:2,tensor:4")
