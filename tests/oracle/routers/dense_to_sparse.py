"""Token by token, without noise: all ids above the threshold, or the first behind the switch."""

import numpy as np

from moejax.routers.dense_to_sparse import Config
from oracle import best, linear_logits, softmax

CASES = (
  Config(),
  Config(k=3, temperature=0.5, threshold=0.1),
  Config(temperature=3.0, noisy_gates=False, threshold=0.2),
  Config(threshold=0.0),
)


logits = linear_logits


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      cooled_U = softmax(np.asarray(logit_U, np.float64) / cfg.temperature)
      gate_U = cooled_U if cfg.noisy_gates else softmax(logit_U)
      for e in best(logit_U, min(cfg.k, inputs.knobs["k_active"])):
        if cooled_U[e] > cfg.threshold:
          weight_NU[n, e] = gate_U[e]
  return weight_NU
