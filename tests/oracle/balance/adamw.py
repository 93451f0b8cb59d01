"""Id by id, at the first step: up or down by `speed`, less what leaks."""

import numpy as np

from moejax.balance.adamw import Config

CASES = (Config(), Config(0.5, b1=0.5, b2=0.9, eps=0.125))


def update(bias_U, count_U, cfg):
  out = []
  for bias, count in zip(bias_U, count_U, strict=True):
    grad = count / sum(count_U) - 1 / len(count_U)
    mean, square = (1 - cfg.b1) * grad, (1 - cfg.b2) * grad**2
    mean, square = mean / (1 - cfg.b1), square / (1 - cfg.b2)
    step = mean / (np.sqrt(square) + cfg.eps) + cfg.weight_decay * bias
    out.append(bias - cfg.speed * step)
  return np.array(out)
