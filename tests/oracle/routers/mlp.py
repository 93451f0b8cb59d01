"""Token by token: one hidden layer, then the k most probable."""

import math

import numpy as np

from moejax.routers.mlp import Config
from oracle import best, softmax

CASES = (Config(), Config(k=3, activation="gelu"))


def act(value, cfg):
  if cfg.activation == "tanh":
    return math.tanh(value)
  return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def logits(variables, inputs, cfg):
  params, rows = variables["params"], []
  columns = [params[name] for name in ("gate_RE", "gate_RZ") if name in params]
  for x_D in np.asarray(inputs.x_ND, np.float64):
    hidden_R = [act(u, cfg) for u in x_D @ params["in_DR"]]
    rows.append(hidden_R @ np.concatenate(columns, axis=1))
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n]:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      prob_U = softmax(logit_U)
      weight_NU[n, chosen] = prob_U[chosen] / prob_U[chosen].sum()
  return weight_NU
