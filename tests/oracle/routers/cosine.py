"""Token by token: cosines in the projected space over the temperature, then the k most probable."""

import numpy as np

from moejax.routers.cosine import Config
from oracle import best, softmax

CASES = (Config(), Config(k=1, renormalise=False), Config(k=3, temperature=0.1))


def logits(variables, inputs, cfg):
  params, rows = variables["params"], []
  scale = min(float(np.exp(params["log_scale_H"][0])), 1 / cfg.floor)
  columns = [params[name] for name in ("expert_RE", "expert_RZ") if name in params]
  for x_D in np.asarray(inputs.x_ND, np.float64):
    r_R = x_D @ params["in_DR"]
    ids = [e_R for part_RU in columns for e_R in part_RU.T]
    rows.append([scale * (r_R @ e_R) / np.linalg.norm(r_R) / np.linalg.norm(e_R) for e_R in ids])
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n] and inputs.knobs["k_active"] > 0:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      gates = softmax(logit_U)[chosen]
      weight_NU[n, chosen] = gates / gates.sum() if cfg.renormalise else gates
  return weight_NU
