"""Token by token: the k highest of probability plus bias, and their probabilities."""

import numpy as np

from moejax.routers.biased_topk import Config
from oracle import best, linear_logits, softmax

CASES = (Config(), Config(k=3, scale=6.0))


def logits(variables, inputs, cfg):
  return linear_logits(variables, inputs)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      prob_U = softmax(logit_U)
      chosen = best(prob_U + inputs.state["bias_U"], cfg.k)[: inputs.knobs["k_active"]]
      weight_NU[n, chosen] = cfg.scale * prob_U[chosen]
  return weight_NU
