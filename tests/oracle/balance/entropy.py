"""The mean over tokens of - sum of p log p."""

import numpy as np

from moejax.balance.entropy import Config
from oracle import softmax

CASES = (Config(),)


def loss(now, before, cfg):
  return sum(np.mean([entropy(token.logits) for token in seen.tokens()]) for seen in now)


def entropy(logits):
  return -sum(p * np.log(p) for p in softmax(logits))


def even(cfg, layers, ids, k):
  """The logits of a token are 0, 1, ... in some order."""
  return layers * entropy(np.arange(ids))


def collapsed(cfg, layers, ids, k):
  return layers * np.log(k)
