"""Group by group and expert by expert: its most probable tokens."""

import numpy as np

from moejax.routers.expert_choice import Config
from oracle import best, linear_logits, softmax

CASES = (Config(), Config(1.0), Config(4.0))


logits = linear_logits


def route(logit_NU, inputs, cfg):
  N, E = logit_NU.shape
  weight_NE, n = np.zeros((N, E)), N // inputs.groups
  prob_NE = np.array([softmax(logit_U) for logit_U in logit_NU])
  for first in range(0, N, n):
    tokens = [t for t in range(first, first + n) if inputs.valid_N[t]]
    for e in range(E):
      for i in best(prob_NE[tokens, e], round(cfg.capacity_factor * n / E)):
        weight_NE[tokens[i], e] = prob_NE[tokens[i], e]
  return weight_NE
