"""Id by id: the mean gate it gets, times the share of tokens that chose it."""

import numpy as np

from moejax.balance.dts import Config
from oracle import softmax

CASES = (Config(),)


def loss(now, before, cfg):
  """`now` has what one micro-batch saw in each layer, `before` a list of earlier ones."""
  total = 0.0
  for seen in now:
    tokens = list(seen.tokens())
    for e in range(seen.ids):
      gate = np.mean([softmax(token.logits)[e] * (e in token.ids) for token in tokens])
      total += seen.ids * gate * np.mean([e in token.ids for token in tokens])
  return total


def even(cfg, layers, ids, k):
  """A token's k choices are its best, of logits that go down from ids - 1 to 0."""
  gates = softmax(np.arange(ids)[::-1])[:k].sum()
  return layers * k * gates


def collapsed(cfg, layers, ids, k):
  """All tokens choose the same k ids and believe in them equally."""
  return layers * ids
