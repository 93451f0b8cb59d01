"""Constant after a linear warm-up."""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import ramps


@dataclasses.dataclass(frozen=True)
class Config:
  warmup_steps: int = 0
  peak: float = 1.0


def value(step, steps: int, cfg: Config) -> jax.Array:
  """The value at a step that may be traced, of `steps` in all.

  >>> [float(value(step, 10, Config(warmup_steps=3))) for step in (0, 1, 3, 9)]
  [0.25, 0.5, 1.0, 1.0]
  """
  ramps.check("constant", cfg, steps)
  return jnp.float32(cfg.peak * ramps.warmup(step, cfg))
