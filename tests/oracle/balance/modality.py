"""For every modality: the share of its choices an id has, times its mean probability there."""

import numpy as np

from moejax.balance.modality import Config
from oracle import softmax

CASES = (Config(),)


def loss(now, before, cfg):
  total = 0.0
  for seen in now:
    for modality in range(cfg.modalities):  # in the battery, every second sequence is of modality 1
      tokens = [token for token in seen.tokens() if token.sequence % 2 == modality]
      chosen = [e for token in tokens for e in token.ids]
      for e in range(seen.ids if tokens else 0):
        mean = np.mean([softmax(token.logits)[e] for token in tokens])
        total += seen.ids * chosen.count(e) / len(chosen) * mean
  return total


def even(cfg, layers, ids, k):
  return cfg.modalities * layers


def collapsed(cfg, layers, ids, k):
  return cfg.modalities * layers * ids / k
