"""Id by id: by how much of all choices it has less than its share."""

import numpy as np

from moejax.balance.proportional import Config

CASES = (Config(), Config(2.0))


def update(bias_U, count_U, cfg):
  shares = [c / sum(count_U) for c in count_U]
  fair = 1 / len(count_U)
  return np.array([b + cfg.speed * (fair - s) for b, s in zip(bias_U, shares, strict=True)])
