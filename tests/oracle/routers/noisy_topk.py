"""Token by token, without noise: the k most probable, and a softmax over them or over all."""

import numpy as np

from moejax.routers.noisy_topk import Config
from oracle import best, linear_logits, softmax

CASES = (Config(), Config(k=3, noise="fixed", softmax="all"), Config(k=1, softmax="all"))


def logits(variables, inputs, cfg):
  return linear_logits(variables, inputs)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n] and inputs.knobs["k_active"] > 0:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      part = cfg.softmax == "chosen"
      weight_NU[n, chosen] = softmax(logit_U[chosen]) if part else softmax(logit_U)[chosen]
  return weight_NU
