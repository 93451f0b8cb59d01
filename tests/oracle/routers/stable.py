"""Token by token: the k highest of one router or of the other, sigmoids of the first as gates."""

import numpy as np

from moejax.routers.stable import Config
from oracle import best, linear_logits

CASES = (Config(), Config(k=2), Config(routed_by="light"), Config(k=3, routed_by="light"))


def logits(variables, inputs, cfg):
  return linear_logits(variables, inputs)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      score_U = logit_U if cfg.routed_by == "learned" else inputs.extras["light_NU"][n]
      for e in best(score_U, cfg.k)[: inputs.knobs["k_active"]]:
        weight_NU[n, e] = 1 / (1 + np.exp(-logit_U[e]))
  return weight_NU
