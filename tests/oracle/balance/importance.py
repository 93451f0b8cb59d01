"""The gates that each id collects; their variance over the square of their mean."""

import numpy as np

from moejax.balance.importance import Config
from oracle import softmax

CASES = (Config(), Config(softmax="chosen"))


def loss(now, before, cfg):
  total = 0.0
  for seen in now:
    gates = np.zeros(seen.ids)
    for token in seen.tokens():
      ids = token.ids if cfg.softmax == "chosen" else list(range(seen.ids))
      for e, gate in zip(ids, softmax(token.logits[ids]), strict=True):
        gates[e] += gate
    total += np.var(gates) / np.mean(gates) ** 2
  return total


def even(cfg, layers, ids, k):
  return 0.0


def collapsed(cfg, layers, ids, k):
  return layers * (ids / k - 1)
