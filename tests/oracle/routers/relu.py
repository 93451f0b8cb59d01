"""Token by token: the k highest of the positive logits, which are the gates."""

import numpy as np

from moejax.routers.relu import Config
from oracle import best, linear_logits

CASES = (Config(), Config(k=1))


def logits(variables, inputs, cfg):
  return linear_logits(variables, inputs)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    for e in best(logit_U, min(cfg.k, inputs.knobs["k_active"])):
      if inputs.valid_N[n] and logit_U[e] > 0:
        weight_NU[n, e] = logit_U[e]
  return weight_NU
