"""Token by token: one step of the gated recurrent unit, then the k most probable."""

import numpy as np

from moejax.routers.recurrent import Config
from oracle import best, softmax

CASES = (Config(), Config(k=3))


def logits(variables, inputs, cfg):
  params, unit, rows = variables["params"], inputs.shared["recurrent"], []
  columns = [params[name] for name in ("gate_RE", "gate_RZ") if name in params]
  sigmoid = lambda a: 1 / (1 + np.exp(-a))
  for x_D, h_R in zip(inputs.x_ND, inputs.carry["hidden_NR"], strict=True):
    u_R = x_D @ params["in_DR"]
    of_u = lambda gate, u_R=u_R: u_R @ unit[f"in_{gate}_RR"] + unit[f"in_{gate}_R"]
    of_h = lambda gate, h_R=h_R: h_R @ unit[f"hidden_{gate}_RR"] + unit[f"hidden_{gate}_R"]
    reset_R = sigmoid(of_u("reset") + of_h("reset"))
    z_R = sigmoid(of_u("update") + of_h("update"))
    new_R = np.tanh(of_u("new") + reset_R * of_h("new"))
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
