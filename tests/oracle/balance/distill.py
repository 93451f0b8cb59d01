"""Choice by choice: minus the logarithm of what the second router gives it.

The logits of a token are here those of the second router.
"""

import numpy as np

from moejax.balance.distill import Config
from oracle import softmax

CASES = (Config(),)


def loss(now, before, cfg):
  each = [[-np.log(softmax(t.logits)[e]) for t in seen.tokens() for e in t.ids] for seen in now]
  return sum(np.mean(layer) for layer in each)


def even(cfg, layers, ids, k):
  """The logits of a token are 0, 1, ... in some order, and its choices are the k best."""
  chosen = range(ids - k, ids)
  return layers * (np.log(sum(np.exp(np.arange(ids)))) - np.mean(chosen))


def collapsed(cfg, layers, ids, k):
  return layers * np.log(k)
