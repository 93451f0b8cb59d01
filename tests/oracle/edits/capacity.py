"""Choices stand in a queue, one queue for each expert and group; the first C of it have a place."""

import math

import jax
import numpy as np

from moejax.core import rng
from moejax.edits.capacity import Config

CASES = (
  Config(),
  Config(0.6),
  Config(0.6, "choice_major"),
  Config(0.6, "gate"),
  Config(0.6, "token_gate"),
  Config(0.6, "random"),
)


def edit(plan, inputs, cfg):
  """(weights of the real experts, sums)."""
  (N, K), E = plan.expert_NK.shape, plan.num_experts
  n, draw_NK = N // inputs.groups, None
  if cfg.order == "random":
    draw_NK = np.asarray(jax.random.uniform(rng.stream(inputs.key, "capacity"), (N, K)))
  priority = {
    "position": lambda t, k: (t, k),
    "choice_major": lambda t, k: (k, t),
    "gate": lambda t, k: (-plan.gate_NK[t, k], t, k),
    "token_gate": lambda t, k: (k, -max(plan.gate_NK[t][plan.expert_NK[t] >= 0], default=0), t),
    "random": lambda t, k: draw_NK[t, k],
  }[cfg.order]
  weight_NE, sums = np.zeros((N, E)), {"choices": 0, "dropped": 0}
  for group in range(inputs.groups):
    everyone = [(t, k) for t in range(group * n, (group + 1) * n) for k in range(K)]
    room = [math.ceil(cfg.factor * n * K / E)] * E
    for t, k in sorted(everyone, key=lambda choice: priority(*choice)):
      e = plan.expert_NK[t, k]
      if 0 <= e < E:
        sums["choices"] += 1
        if room[e] > 0:
          room[e] -= 1
          weight_NE[t, e] += plan.gate_NK[t, k]
        else:
          sums["dropped"] += 1
  return weight_NE, sums
