"""Token by token: one step of the gated unit, then the k most probable."""

import numpy as np

from moejax.routers.recurrent import Config
from oracle import best, softmax

CASES = (Config(), Config(k=3))


def logits(variables, inputs, cfg):
  params, unit, rows = variables["params"], inputs.shared["recurrent"], []
  columns = [params[name] for name in ("gate_RE", "gate_RZ") if name in params]
  for x_D, h_R in zip(inputs.x_ND, inputs.carry["hidden_NR"], strict=True):
    u_R = x_D @ params["in_DR"]
    z_R = 1 / (1 + np.exp(-(u_R @ unit["wz_RR"] + h_R @ unit["uz_RR"])))
    new_R = np.tanh(u_R @ unit["wn_RR"] + h_R @ unit["un_RR"])
    rows.append(((1 - z_R) * new_R + z_R * h_R) @ np.concatenate(columns, axis=1))
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      prob_U = softmax(logit_U)
      weight_NU[n, chosen] = prob_U[chosen] / prob_U[chosen].sum()
  return weight_NU
