"""Token by token: logits from the token, moved by its condition, then the k most probable."""

import numpy as np

from moejax.routers.conditioned import Config
from oracle import columns, most_probable

CASES = (Config(), Config(k=3, renormalise=False))


def logits(variables, inputs, cfg):
  params, rows = variables["params"], []
  for x_D, cond_C in zip(np.asarray(inputs.x_ND, np.float64), inputs.cond_NC, strict=True):
    if cfg.mode == "modulate":
      scale_D, shift_D = cond_C @ params["scale_CD"], cond_C @ params["shift_CD"]
      x_D = x_D * (1 + scale_D) + shift_D
    row_U = x_D @ columns(params, "gate_D")
    rows.append(row_U + cond_C @ columns(params, "cond_C") if cfg.mode == "add" else row_U)
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  return most_probable(logit_NU, inputs, cfg.k, cfg.renormalise)
