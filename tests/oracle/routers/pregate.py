"""Token by token: the k best of logits that are there before any layer, each with an equal part.

The network that computes them has its own loops in tests/unit/routers/test_pregate.py.
"""

import numpy as np

from moejax.routers.pregate import Config
from oracle import best

CASES = (Config(), Config(k=2), Config(gates="one"))


def logits(variables, inputs, cfg):
  return inputs.shared["pregate"]["logit_NU"]


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      weight_NU[n, best(logit_U, cfg.k)[: inputs.knobs["k_active"]]] = 1 / cfg.k
  return weight_NU
