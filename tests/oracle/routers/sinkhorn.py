"""Group by group: rows and columns divided by their sums in turn, then each token's k highest."""

import numpy as np

from moejax.routers.sinkhorn import Config
from oracle import best, linear_logits, sigmoid, softmax

CASES = (Config(), Config(k=3))
TRAINING = True


logits = linear_logits


def even(logit_nU):
  """Rows of sum 1, columns of sum n / U."""
  power_nU = np.exp(np.asarray(logit_nU, np.float64))
  n, U = power_nU.shape
  for _ in range(1000):
    for e in range(U):
      power_nU[:, e] *= n / U / power_nU[:, e].sum()
    for i in range(n):
      power_nU[i] /= power_nU[i].sum()
  return power_nU


def route(logit_NU, inputs, cfg):
  (N, _), weight_NU = logit_NU.shape, np.zeros(logit_NU.shape)
  for tokens in np.split(np.arange(N), inputs.groups):
    tokens = [n for n in tokens if inputs.valid_N[n]]
    score_nU = logit_NU[tokens] if inputs.key is None else even(logit_NU[tokens])
    for n, score_U in zip(tokens, score_nU, strict=True):
      chosen = best(score_U, cfg.k)[: inputs.knobs["k_active"]]
      gate_U = sigmoid(logit_NU[n]) if cfg.k == 1 else softmax(logit_NU[n])
      weight_NU[n, chosen] = gate_U[chosen]
  return weight_NU
