"""A straight line from `peak` to `end` over the whole run, after a linear warm-up."""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import ramps


@dataclasses.dataclass(frozen=True)
class Config:
  warmup_steps: int = 0
  peak: float = 1.0
  end: float = 0.0


def value(step, steps: int, cfg: Config) -> jax.Array:
  """The value at a step that may be traced, of `steps` in all.

  >>> [float(value(step, 4, Config())) for step in range(5)]
  [1.0, 0.75, 0.5, 0.25, 0.0]
  """
  ramps.check("linear", cfg, steps)
  done = ramps.progress(step, cfg.warmup_steps, steps)
  return jnp.float32(ramps.warmup(step, cfg) * (cfg.peak + (cfg.end - cfg.peak) * done))
