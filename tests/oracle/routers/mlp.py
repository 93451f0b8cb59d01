"""Token by token: one hidden layer, then the k most probable."""

import math

import numpy as np

from moejax.routers.mlp import Config
from oracle import columns, most_probable

CASES = (Config(), Config(k=3, activation="gelu"))


def act(value, cfg):
  if cfg.activation == "tanh":
    return math.tanh(value)
  return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def logits(variables, inputs, cfg):
  params, rows = variables["params"], []
  for x_D in np.asarray(inputs.x_ND, np.float64):
    hidden_R = [act(u, cfg) for u in x_D @ params["in_DR"]]
    rows.append(hidden_R @ columns(params, "gate_R"))
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  return most_probable(logit_NU, inputs, cfg.k, renormalise=True)
