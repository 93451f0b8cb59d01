"""Token by token: the matrix of its modality on the experts it may have, then the k best."""

import numpy as np

from moejax.routers.modality import Config
from oracle import best, softmax

CASES = (Config(), Config(k=1, renormalise=False))


def logits(variables, inputs, cfg):
  params, E, rows = variables["params"], inputs.num_experts, []
  first, last = (round(share * E) for share in cfg.own)
  for x_D, m in zip(inputs.x_ND, inputs.modality_N, strict=True):
    names = (f"gate{m}_DE", f"gate{m}_DZ")
    row = [x_D @ params[name] for name in names if name in params]
    row = np.concatenate(row).astype(np.float64)
    for e in range(E):
      if (m == 0 and e >= E - last) or (m == 1 and e < first):
        row[e] = -np.inf
    rows.append(row)
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n] and inputs.knobs["k_active"] > 0:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      gates = softmax(logit_U)[chosen]
      weight_NU[n, chosen] = gates / gates.sum() if cfg.renormalise else gates
  return weight_NU
