"""What the controllers of selection biases share: who is to get how much, and whose bias moves.

A controller reads the counts of a whole step and writes bias_U, which no gradient moves. Beside the
sums of the layer it gets `expert_U` (train/balancing.py): 1 for an expert, 0 for a virtual id.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from moejax.core import plugin
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
  """The fields that every controller has, besides its own."""

  expert_share: float | None = None  # of all choices, for the experts together; None: all ids alike
  virtual: Literal["moved", "held"] = "moved"  # held: the biases of virtual ids stay as they are

  def __post_init__(self):
    if self.expert_share is not None and not 0 < self.expert_share <= 1:
      raise Wrong(
        f"{plugin.stem(self)}: expert_share is {self.expert_share}; it is the part of all choices"
        " that the experts are to get together, above 0 and at most 1."
      )


def target(sums: dict, cfg: Aim) -> jax.Array:
  """The share of the step's choices that each id is to get.

  >>> sums = {"count_U": jnp.zeros(4), "expert_U": jnp.array([1, 1, 0, 0])}
  >>> target(sums, Aim()).tolist(), target(sums, Aim(expert_share=0.75)).tolist()
  ([0.25, 0.25, 0.25, 0.25], [0.375, 0.375, 0.125, 0.125])
  """
  U = len(sums["count_U"])
  if cfg.expert_share is None:
    return jnp.full(U, 1 / U)
  expert_U = _experts(sums)
  E = expert_U.sum()
  rest = (1 - cfg.expert_share) / jnp.maximum(U - E, 1)
  return jnp.where(expert_U > 0, cfg.expert_share / E, rest)


def error(sums: dict, cfg: Aim) -> jax.Array:
  """How much each id is short of its share of the choices; 0 for ids that are held.

  >>> error({"count_U": jnp.array([3., 1.])}, Aim()).tolist()
  [-0.25, 0.25]
  """
  total = sums["count_U"].sum()
  short_U = target(sums, cfg) - sums["count_U"] / jnp.maximum(total, 1)
  return jnp.where(total > 0, moves(sums, cfg) * short_U, 0)


def moves(sums: dict, cfg: Aim) -> jax.Array:
  """1 for the ids whose bias moves, 0 for those that are held."""
  return _experts(sums) if cfg.virtual == "held" else jnp.ones_like(sums["count_U"])


def moved(state: dict, step_U, sums: dict, knobs: dict, cfg) -> dict:
  """The state with its bias moved by `speed` steps, or by those of the knob `bias_speed`."""
  if "bias_U" not in state:
    raise Wrong(
      f"{plugin.stem(cfg)}: the router has no bias to move; use a router with one, as"
      " 'sigmoid_topk'."
    )
  step_U = knobs.get("bias_speed", cfg.speed) * moves(sums, cfg) * step_U
  return {**state, "bias_U": state["bias_U"] + step_U}


def _experts(sums):
  """Where nothing was said, all ids are experts."""
  return sums.get("expert_U", jnp.ones_like(sums["count_U"])).astype(jnp.float32)
