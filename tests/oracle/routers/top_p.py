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
  Config(threshold=0.8, near=0.9),
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
    if cfg.near is None:
      gates = {e: prob_U[e] / (gathered if cfg.renormalise else 1) for e in chosen}
    else:
      gates = over_their_sum(chosen, logit_U, cfg.near)
    for e, gate in gates.items():
      weight_NU[n, e] = gate
  return weight_NU


def over_their_sum(chosen, logit_U, near):
  """The first of `chosen` against all ids that are near it, the next without the first, ..."""
  gates, left = {}, list(range(len(logit_U)))
  for e in chosen:
    rivals = [i for i in left if logit_U[e] - logit_U[i] <= near * max(abs(logit_U[i]), logit_U[e])]
    gates[e] = np.exp(logit_U[e]) / sum(np.exp(logit_U[i]) for i in rivals)
    left.remove(e)
  return {e: gate / (sum(gates.values()) + 1e-6) for e, gate in gates.items()}
