"""Token by token: the first choice stays, others if a draw is below their part of the gates."""

import jax
import numpy as np

from moejax.core import rng
from moejax.edits.second_expert import Config

CASES = (Config(), Config(factor=1.0))


def edit(plan, inputs, cfg):
  """(weights of the real experts, sums)."""
  (N, K), E = plan.expert_NK.shape, plan.num_experts
  draw_NK = np.asarray(jax.random.uniform(rng.stream(inputs.key, "second_expert"), (N, K)))
  weight_NE, sums = np.zeros((N, E)), {"choices": 0, "dropped": 0}
  for n, ids in enumerate(plan.expert_NK):
    total = sum(plan.gate_NK[n, k] for k in range(K) if ids[k] >= 0)
    for k, e in enumerate(ids):
      if e < 0:
        continue
      kept = k == 0 or draw_NK[n, k] < cfg.factor * plan.gate_NK[n, k] / total
      sums["choices"] += int(k > 0)
      sums["dropped"] += int(not kept)
      if kept and e < E:
        weight_NE[n, e] += plan.gate_NK[n, k]
  return weight_NE, sums
