"""Pieces of schedules: the warm-up, and how far a run has come since."""

import jax.numpy as jnp

from moejax.core.plugin import Wrong


def check(name: str, cfg, steps: int):
  """Refuses a warm-up that the run never leaves; `steps` is the length of the run."""
  if cfg.warmup_steps < 0:
    raise Wrong(f"{name}: warmup_steps is {cfg.warmup_steps}; use 0 or more.")
  if cfg.warmup_steps >= max(steps, 1):
    raise Wrong(
      f"{name}: {cfg.warmup_steps} warmup_steps do not fit in a run of {steps} steps; lower"
      " warmup_steps or train longer."
    )


def warmup(step, cfg):
  """Straight up to 1 at step `warmup_steps`, never 0: the first step moves too.

  >>> import types
  >>> [float(warmup(step, types.SimpleNamespace(warmup_steps=3))) for step in (0, 1, 3, 9)]
  [0.25, 0.5, 1.0, 1.0]
  """
  return jnp.minimum(1.0, (step + 1.0) / (cfg.warmup_steps + 1.0))


def progress(step, first: float, last: float):
  """0 before `first`, 1 from `last` on, and straight between."""
  return jnp.clip((step - first) / max(last - first, 1.0), 0.0, 1.0)
