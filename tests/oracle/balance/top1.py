"""Squared mean probabilities over the mean of the largest ones, times the number of ids."""

import numpy as np

from moejax.balance.top1 import Config
from oracle import softmax

CASES = (Config(), Config(temperature=0.5))


def loss(now, before, cfg):
  total = 0.0
  for seen in now:
    probs = [softmax(np.asarray(token.logits) / cfg.temperature) for token in seen.tokens()]
    largest = np.mean([max(prob) for prob in probs])
    total += (
      seen.ids * sum(np.mean([prob[e] for prob in probs]) ** 2 for e in range(seen.ids)) / largest
    )
  return total


def even(cfg, layers, ids, k):
  """The logits of a token are 0, 1, ... in some order, so no token is quite sure."""
  return layers / max(softmax(np.arange(ids) / cfg.temperature))


def collapsed(cfg, layers, ids, k):
  return layers * ids
