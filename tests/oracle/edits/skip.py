"""Token by token: gates below a part of the largest one are left out."""

import numpy as np

from moejax.edits.skip import Config

CASES = (Config(), Config(0.0), Config(1.0))


def edit(plan, inputs, cfg):
  """(weights of the real experts, sums)."""
  weight_NE, sums = np.zeros((len(plan.expert_NK), plan.num_experts)), {"choices": 0, "skipped": 0}
  for n, (ids, gates) in enumerate(zip(plan.expert_NK, plan.gate_NK, strict=True)):
    used = [(e, g) for e, g in zip(ids, gates, strict=True) if e >= 0]
    sums["choices"] += max(len(used) - 1, 0)
    for e, g in used:
      if g < np.float32(cfg.beta) * max(g for _, g in used):
        sums["skipped"] += 1
      elif e < plan.num_experts:
        weight_NE[n, e] += g
  return weight_NE, sums
