"""Token by token: the k most probable, and their probabilities."""

import numpy as np

from moejax.routers.topk import Config
from oracle import best, linear_logits, softmax

CASES = (
  Config(),
  Config(k=1, renormalise=False),
  Config(k=3, renormalise=False, scale=2.5),
  Config(k=3, softmax="chosen"),
  Config(k=4, scale=0.5),
)


def logits(variables, inputs, cfg):
  return linear_logits(variables, inputs)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n] and inputs.knobs["k_active"] > 0:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      if cfg.softmax == "chosen":
        gates = softmax(logit_U[chosen])
      else:
        gates = softmax(logit_U)[chosen]
        if cfg.renormalise:
          gates = gates / gates.sum()
      weight_NU[n, chosen] = cfg.scale * gates
  return weight_NU
