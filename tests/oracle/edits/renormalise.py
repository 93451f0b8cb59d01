"""Token by token: what is left, scaled up."""

import numpy as np

from moejax.edits.renormalise import Config

CASES = (Config(), Config("one"))


def edit(plan, inputs, cfg):
  """(weights of the real experts, sums)."""
  weight_NE = np.zeros((len(plan.expert_NK), plan.num_experts))
  for n, (ids, gates) in enumerate(zip(plan.expert_NK, plan.gate_NK, strict=True)):
    left = sum(g for e, g in zip(ids, gates, strict=True) if e >= 0)
    want = sum(gates) if cfg.total == "before" else 1
    for e, g in zip(ids, gates, strict=True):
      if 0 <= e < plan.num_experts:
        weight_NE[n, e] += g * want / left
  return weight_NE, {}
