"""Token by token and group by group: its most probable ids, with their part of all of them."""

import numpy as np

from moejax.routers.grouped_topk import Config
from oracle import best, linear_logits, softmax

CASES = (Config(), Config(k=2, groups=2), Config(k=4, groups=2), Config(k=4, groups=4))


logits = linear_logits


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  scale_U = inputs.extras.get("scale_U", np.ones(logit_NU.shape[1]))
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      groups = np.split(np.arange(len(logit_U)), cfg.groups)
      ranked = [[g[i] for i in best(logit_U[g], cfg.k // cfg.groups)] for g in groups]
      chosen = [e for of_one_rank in zip(*ranked, strict=True) for e in of_one_rank]
      for e in chosen[: inputs.knobs["k_active"]]:
        weight_NU[n, e] = softmax(logit_U)[e] * scale_U[e]
  return weight_NU
