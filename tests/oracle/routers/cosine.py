"""Token by token: cosines in the projected space over the temperature, then the k most probable."""

import numpy as np

from moejax.routers.cosine import Config
from oracle import columns, most_probable

CASES = (Config(), Config(k=1, renormalise=False), Config(k=3, temperature=0.1))


def logits(variables, inputs, cfg):
  params, rows = variables["params"], []
  scale = min(float(np.exp(params["log_scale_H"][0])), 1 / cfg.floor)
  expert_RU = columns(params, "expert_R")
  for x_D in np.asarray(inputs.x_ND, np.float64):
    r_R = x_D @ params["in_DR"]
    cosine = lambda e_R, r_R=r_R: r_R @ e_R / np.linalg.norm(r_R) / np.linalg.norm(e_R)
    rows.append([scale * cosine(e_R) for e_R in expert_RU.T])
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  return most_probable(logit_NU, inputs, cfg.k, cfg.renormalise)
