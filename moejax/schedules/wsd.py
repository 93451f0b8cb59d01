"""Warm up, stay at `peak`, decay to `end` in the last part of the run.

Paper:  Hu et al. 2024, arXiv:2404.06395; the shape `sqrt` is Haegele et al. 2024, arXiv:2405.18392.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.core import ramps
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  warmup_steps: int = 0
  peak: float = 1.0
  end: float = 0.0
  decay_fraction: float = 0.2  # of all steps
  shape: Literal["linear", "sqrt"] = "linear"  # sqrt: 1 - the root of the way, steep at first

  def __post_init__(self):
    if not 0 <= self.decay_fraction <= 1:
      raise Wrong(f"wsd: decay_fraction is {self.decay_fraction}; use a share of the run, 0 to 1.")


def value(step, steps: int, cfg: Config) -> jax.Array:
  """The value at a step that may be traced, of `steps` in all.

  >>> [float(value(step, 10, Config(decay_fraction=0.4))) for step in (0, 6, 8, 10)]
  [1.0, 1.0, 0.5, 0.0]
  """
  ramps.check("wsd", cfg, steps)
  first = steps - cfg.decay_fraction * steps
  if cfg.warmup_steps > first:
    raise Wrong(
      f"wsd: {cfg.warmup_steps} warmup_steps reach into the decay, which starts at step {first:g}"
      f" of {steps}; lower warmup_steps or decay_fraction."
    )
  done = ramps.progress(step, first, steps)
  done = jnp.sqrt(done) if cfg.shape == "sqrt" else done
  return jnp.float32(ramps.warmup(step, cfg) * (cfg.peak + (cfg.end - cfg.peak) * done))
