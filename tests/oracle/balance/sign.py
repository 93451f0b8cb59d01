"""Id by id: up where it has fewer choices than the mean, down where it has more."""

import numpy as np

from moejax.balance.sign import Config

CASES = (Config(), Config(0.5))


def update(bias_U, count_U, cfg):
  mean = sum(count_U) / len(count_U)
  return np.array([b + cfg.speed * np.sign(mean - c) for b, c in zip(bias_U, count_U, strict=True)])
