"""Token by token: the matrix of its modality on the experts it may have, then the k best."""

import numpy as np

from moejax.routers.modality import Config
from oracle import columns, most_probable

CASES = (Config(), Config(k=1, renormalise=False))


def logits(variables, inputs, cfg):
  params, E, rows = variables["params"], inputs.num_experts, []
  first, last = (round(share * E) for share in cfg.own)
  for x_D, m in zip(inputs.x_ND, inputs.modality_N, strict=True):
    row_U = x_D @ columns(params, f"gate{m}_D")
    for e in range(E):
      if (m == 0 and e >= E - last) or (m == 1 and e < first):
        row_U[e] = -np.inf
    rows.append(row_U)
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  return most_probable(logit_NU, inputs, cfg.k, cfg.renormalise)
