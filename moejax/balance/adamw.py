"""AdamW on selection biases: the share an id is short of stands for the gradient of its bias.

Paper:  Zyphra 2025 (ZAYA1), arXiv:2511.17127; Loshchilov and Hutter 2019, arXiv:1711.05101.
State:  bias_U of a router that chooses with one; its own mean_U, square_U, steps_U.
Study:  configs/studies/auxfree_vs_aux.py
Differs from the paper: the rule is not given there in full; here the error of the load is handed to
        AdamW as the negative gradient. Weight decay lets a bias leak back to 0.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core import controllers
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config(controllers.Aim):
  speed: float = 1e-3  # the learning rate; the knob bias_speed replaces it
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  weight_decay: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
      raise Wrong(f"adamw: b1 is {self.b1} and b2 is {self.b2}; both are within 0..1, 1 left out.")


def init_state(cfg, U: int) -> dict:
  """What this rule keeps beside the router's state."""
  return {name: jnp.zeros(U) for name in ("mean_U", "square_U", "steps_U")}


def update(params, state, sums, knobs, cfg):
  """The state after a step, from the counts of the whole step.

  >>> state = {"bias_U": jnp.zeros(2), **init_state(Config(), 2)}
  >>> sums = {"count_U": jnp.array([3., 1.])}
  >>> update({}, state, sums, {}, Config(0.5))["bias_U"].round(3).tolist()
  [-0.5, 0.5]
  """
  grad_U = -controllers.error(sums, cfg)
  mean_U = cfg.b1 * state["mean_U"] + (1 - cfg.b1) * grad_U
  square_U = cfg.b2 * state["square_U"] + (1 - cfg.b2) * grad_U**2
  steps_U = state["steps_U"] + 1
  size_U = jnp.sqrt(square_U / (1 - cfg.b2**steps_U)) + cfg.eps
  step_U = -mean_U / (1 - cfg.b1**steps_U) / size_U
  own = {"mean_U": mean_U, "square_U": square_U, "steps_U": steps_U}
  if cfg.weight_decay and "bias_U" in state:
    step_U = step_U - cfg.weight_decay * state["bias_U"]
  return {**controllers.moved(state, step_U, sums, knobs, cfg), **own}
