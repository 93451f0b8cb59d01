"""Token by token: logits from the token, moved by its condition, then the k most probable."""

import numpy as np

from moejax.routers.conditioned import Config
from oracle import best, softmax

CASES = (Config(), Config(k=3, renormalise=False))


def logits(variables, inputs, cfg):
  params, rows = variables["params"], []
  for x_D, cond_C in zip(np.asarray(inputs.x_ND, np.float64), inputs.cond_NC, strict=True):
    if cfg.mode == "modulate":
      scale_D, shift_D = cond_C @ params["scale_CD"], cond_C @ params["shift_CD"]
      x_D = x_D * (1 + scale_D) + shift_D
    row = []
    for letter in "EZ":
      if f"gate_D{letter}" in params:
        column = x_D @ params[f"gate_D{letter}"]
        row.append(column + cond_C @ params[f"cond_C{letter}"] if cfg.mode == "add" else column)
    rows.append(np.concatenate(row))
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n] and inputs.knobs["k_active"] > 0:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      gates = softmax(logit_U)[chosen]
      weight_NU[n, chosen] = gates / gates.sum() if cfg.renormalise else gates
  return weight_NU
