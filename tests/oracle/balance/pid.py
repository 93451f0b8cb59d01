"""Id by id, at the first step: the error itself, its change from 0, the change of that from 0."""

import numpy as np

from moejax.balance.pid import Config

CASES = (
  Config(),
  Config(2.0, proportional=0.5, integral=0.25, derivative=3.0),
  Config(9.0, limit=0.4),
)


def update(bias_U, count_U, cfg):
  out = []
  for bias, count in zip(bias_U, count_U, strict=True):
    error = 1 / len(count_U) - count / sum(count_U)
    move = (cfg.integral + cfg.proportional + cfg.derivative) * error
    out.append(min(max(bias + cfg.speed * move, -cfg.limit), cfg.limit))
  return np.array(out)
