"""Constant pieces: the value jumps where a part of the run is done. For knobs, also by layer."""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  values: tuple  # of numbers, or of lists with one number per layer
  until: tuple[float, ...] = ()  # where each value but the last one ends, in parts of the run

  def __post_init__(self):
    falls = any(b <= a for a, b in zip((0.0, *self.until), (*self.until, 1.0), strict=True))
    if len(self.until) != len(self.values) - 1 or falls:
      raise Wrong(
        f"piecewise: {len(self.values)} values end at {list(self.until)}; until has an end for each"
        " value but the last, rising between 0 and 1."
      )
    if len({len(v) if isinstance(v, tuple) else 0 for v in self.values}) > 1:
      raise Wrong("piecewise: values are numbers, or lists of one length each, not a mixture.")


def value(step, steps: int, cfg: Config) -> jax.Array:
  """The value at a step that may be traced, of `steps` in all.

  >>> cfg = Config(values=((2, 1), (1, 1)), until=(0.5,))
  >>> [value(step, 10, cfg).tolist() for step in (0, 4, 5, 9)]
  [[2.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
  """
  piece = sum((step >= end * steps for end in cfg.until), jnp.int32(0))
  return jnp.asarray(cfg.values, jnp.float32)[piece]
