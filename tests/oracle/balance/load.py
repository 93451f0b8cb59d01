"""For each token and id: how likely is it, with new noise on this id alone, that it is chosen?"""

import math

import numpy as np

from moejax.balance.load import Config

CASES = (Config(), Config(threshold="others"))
K = 2  # choices of a token, used or not


def loss(now, before, cfg):
  total = 0.0
  for seen in now:
    load = np.zeros(seen.ids)
    for token in seen.tokens():
      for e in range(seen.ids):
        others = np.delete(token.logits, e) if cfg.threshold == "others" else token.logits
        load[e] += normal((token.logits[e] - sorted(others)[-K]) * seen.ids)
    total += np.var(load) / np.mean(load) ** 2
  return total


def normal(x):
  """The distribution function of the normal distribution."""
  return (1 + math.erf(x / math.sqrt(2))) / 2


def even(cfg, layers, ids, k):
  return 0.0


def collapsed(cfg, layers, ids, k):
  """Equal logits of the k ids: with all as threshold each is chosen half of the time."""
  return layers * (ids / k - 1)
