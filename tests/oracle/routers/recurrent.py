"""Token by token: one step of the gated recurrent unit, then the k most probable."""

import numpy as np

from moejax.routers.recurrent import Config
from oracle import columns, most_probable, sigmoid

CASES = (Config(), Config(k=3))


def logits(variables, inputs, cfg):
  params, unit, rows = variables["params"], inputs.shared["recurrent"], []
  for x_D, h_R in zip(inputs.x_ND, inputs.carry["hidden_NR"], strict=True):
    u_R = x_D @ params["in_DR"]
    of_u = lambda gate, u_R=u_R: u_R @ unit[f"in_{gate}_RR"] + unit[f"in_{gate}_R"]
    of_h = lambda gate, h_R=h_R: h_R @ unit[f"hidden_{gate}_RR"] + unit[f"hidden_{gate}_R"]
    reset_R = sigmoid(of_u("reset") + of_h("reset"))
    z_R = sigmoid(of_u("update") + of_h("update"))
    new_R = np.tanh(of_u("new") + reset_R * of_h("new"))
    rows.append(((1 - z_R) * new_R + z_R * h_R) @ columns(params, "gate_R"))
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  return most_probable(logit_NU, inputs, cfg.k, renormalise=True)
