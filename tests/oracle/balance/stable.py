"""Choice by choice: its sigmoid, times how far the load of its id is above the mean."""

from moejax.balance.stable import Config
from oracle import sigmoid

CASES = (Config(),)


def loss(now, before, cfg):
  total = 0.0
  for seen in now:
    tokens = list(seen.tokens())
    chosen = [(e, token.logits[e]) for token in tokens for e in token.ids]
    mean = len(chosen) / seen.ids
    for e, logit in chosen:
      load = sum(other == e for other, _ in chosen)
      total += (load / mean - 1) * sigmoid(logit) / len(tokens)
  return total


def even(cfg, layers, ids, k):
  return 0


def collapsed(cfg, layers, ids, k):
  return layers * (ids - k)
