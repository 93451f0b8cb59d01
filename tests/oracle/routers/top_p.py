"""Token by token: the most probable ids until their sum is above the threshold."""

import numpy as np

from moejax.routers.top_p import Config
from oracle import best, linear_logits, softmax

CASES = (
  Config(),
  Config(threshold=0.0),
  Config(threshold=0.9, k=3),
  Config(threshold=0.7, renormalise=True),
  Config(threshold=1.0),
)


logits = linear_logits


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    prob_U, chosen, gathered = softmax(logit_U), [], 0.0
    for e in best(logit_U, min(cfg.k, inputs.knobs["k_active"])):
      if inputs.valid_N[n] and gathered <= cfg.threshold:
        chosen.append(e)
        gathered += prob_U[e]
    for e in chosen:
      weight_NU[n, e] = prob_U[e] / (gathered if cfg.renormalise else 1)
  return weight_NU
