"""As sign.py, less the mean of all moves."""

import numpy as np

from moejax.balance.zero_mean import Config

CASES = (Config(), Config(0.5))


def update(bias_U, count_U, cfg):
  mean = sum(count_U) / len(count_U)
  signs = [np.sign(mean - c) for c in count_U]
  drift = sum(signs) / len(signs)
  return np.array([b + cfg.speed * (s - drift) for b, s in zip(bias_U, signs, strict=True)])
