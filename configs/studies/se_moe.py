"""Experts that wait in slower memory: caches of them under real choices, rings of sections.

Run:    python -m experiments.study se_moe [--workers=2]
        with the extra aot, for the memory of the ring
Expect: a cache that counts uses hits more often than one that goes by age, and a ring whose peak
        is that of its slots. Copies on a real bus are not measured here.
"""

from configs.base import decoder, merge

ARMS = {"balanced": dict(weight=0.01), "free": None}
PAPERS = {
  "balanced": (
    "Ring of sections in host memory (moejax/layers/sections.py) and a cache of hot experts.",
    "Shen et al. 2022 (SE-MoE), arXiv:2205.10034",
  ),
}


def get_config(arm="balanced"):
  """The brief recipe with 32 narrow experts, with and without a loss that evens their load."""
  moe = dict(num_experts=32, hidden=32, balance=dict(switch=ARMS[arm]))
  return merge(decoder.brief(), model=dict(moe=moe))
