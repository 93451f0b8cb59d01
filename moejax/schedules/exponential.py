"""A constant factor per step from `peak` down (or up) to `end`, which it keeps, after a warm-up.

Paper:  Nie et al. 2021 (EvoMoE), arXiv:2112.14397, for the temperature of its gate.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import ramps
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  warmup_steps: int = 0
  peak: float = 1.0
  end: float = 0.1
  decay_steps: int | None = None  # until `end` is reached; None = the rest of the run

  def __post_init__(self):
    if min(self.peak, self.end) <= 0:
      raise Wrong(
        f"exponential: peak is {self.peak} and end is {self.end}; a factor per step leads from one"
        " number above 0 to another. Use 'linear' to reach 0."
      )
    if self.decay_steps is not None and self.decay_steps < 1:
      raise Wrong(f"exponential: decay_steps is {self.decay_steps}; use at least 1, or None.")


def value(step, steps: int, cfg: Config) -> jax.Array:
  """The value at a step that may be traced, of `steps` in all.

  >>> [round(float(value(s, 4, Config(peak=1.0, end=0.25, decay_steps=2))), 3) for s in range(4)]
  [1.0, 0.5, 0.25, 0.25]
  """
  ramps.check("exponential", cfg, steps)
  last = steps if cfg.decay_steps is None else cfg.warmup_steps + cfg.decay_steps
  done = ramps.progress(step, cfg.warmup_steps, last)
  return jnp.float32(ramps.warmup(step, cfg) * cfg.peak * (cfg.end / cfg.peak) ** done)
