"""Experts that stay, that move between owners, and that have copies (4 virtual CPU devices).

Run:    python -m experiments.study placement [--workers=2]
Expect: the same loss for all; the busiest owner has less above the mean where experts move, and
        least where the busiest have copies. Time is not measured here.
"""

from configs.base import decoder, merge

ARMS = {  # slots, and copies of an expert at the most
  "stay": None,
  "move": dict(stored=16, copies=1),
  "copy": dict(stored=24, copies=4),
}
PAPERS = {
  "move": (
    "Experts move between owners in training, with their moments.",
    "Pangu Team 2025 (Pangu Ultra MoE), arXiv:2505.04519",
  ),
  "copy": (
    "Copies of the busiest experts, packed evenly.",
    "DeepSeek-AI 2025 (EPLB), github.com/deepseek-ai/EPLB",
  ),
}


def get_config(arm="copy"):
  """Sixteen experts on four owners, with a balance loss too weak to even them out."""
  base = merge(
    decoder.spread(),
    model=dict(
      moe=dict(
        num_experts=16,
        edits=[],
        balance=dict(switch=dict(weight=1e-3)),
        dispatch=dict(name="all_gather"),
      )
    ),
    train=dict(steps=60, log_every=1, eval_every=60),
    mesh="expert:4",
  )
  if ARMS[arm] is None:
    return base
  placement = dict(every=5, decay=0.7, copies=ARMS[arm]["copies"])
  stored = dict(moe=dict(stored=ARMS[arm]["stored"]))
  return merge(base, model=stored, train=dict(placement=placement))
