"""Token by token, head by head, expert by expert: one hidden unit each."""

import math

import numpy as np

from moejax.layers.peer import Config
from oracle import softmax
from oracle.layers import slots

CASES = (
  Config(keys=8, k=4, key_width=6),
  Config(keys=8, k=3, heads=1, key_width=6, gate="relu", activation="identity"),
)


def output(params, state, x_ND, cfg):
  y_ND = np.zeros(x_ND.shape)
  for n, x_D in enumerate(x_ND):
    for head in range(cfg.heads):
      found = slots(params["router"], x_D, head, cfg)
      scores = [score for _, score in found]
      gates = softmax(scores) if cfg.gate == "softmax" else [max(s, 0.0) for s in scores]
      for (slot, _), gate in zip(found, gates, strict=True):
        unit = params["in_PD"][slot] @ x_D
        if cfg.activation == "gelu":
          unit *= (1 + math.tanh(math.sqrt(2 / math.pi) * (unit + 0.044715 * unit**3))) / 2
        y_ND[n] += gate * unit * params["value_PD"][slot]
  return y_ND
