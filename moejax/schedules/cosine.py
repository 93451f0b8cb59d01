"""Half a cosine from `peak` to `end` over the whole run, after a linear warm-up.

Paper:  Loshchilov and Hutter 2017, arXiv:1608.03983 (one period).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import ramps


@dataclasses.dataclass(frozen=True)
class Config:
  warmup_steps: int = 0
  peak: float = 1.0
  end: float = 0.1


def value(step, steps: int, cfg: Config) -> jax.Array:
  """The value at a step that may be traced, of `steps` in all.

  >>> [round(float(value(step, 4, Config(end=0.0))), 3) for step in range(5)]
  [1.0, 0.854, 0.5, 0.146, 0.0]
  """
  ramps.check("cosine", cfg, steps)
  done = ramps.progress(step, cfg.warmup_steps, steps)
  rest = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
  return jnp.float32(ramps.warmup(step, cfg) * (cfg.end + (cfg.peak - cfg.end) * rest))
