"""Token by token: the k highest of sigmoid plus bias, inside the best groups; sigmoids as gates."""

import numpy as np

from moejax.routers.sigmoid_topk import Config
from oracle import best, linear_logits, sigmoid

CASES = (
  Config(),
  Config(k=3, renormalise=False),
  Config(k=2, scale=2.5, groups=2, groups_kept=1),
  Config(k=2, groups=4, groups_kept=2),
)


logits = linear_logits


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      score_U = sigmoid(logit_U)
      biased_U = score_U + inputs.state["bias_U"]
      groups = np.split(np.arange(len(biased_U)), cfg.groups)
      strength = [sum(sorted(biased_U[g])[-(cfg.k // cfg.groups_kept) :]) for g in groups]
      allowed = np.concatenate([groups[g] for g in best(strength, cfg.groups_kept)])
      order = best([biased_U[e] if e in allowed else -np.inf for e in range(len(biased_U))], cfg.k)
      chosen = order[: inputs.knobs["k_active"]]
      total = score_U[chosen].sum() if cfg.renormalise else 1
      weight_NU[n, chosen] = cfg.scale * score_U[chosen] / total
  return weight_NU
