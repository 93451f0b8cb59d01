"""A PID controller of selection biases: the share an id is short of, its sum and its change.

Paper:  LongCat-Flash 2025, arXiv:2509.01322 (a controller of the load of experts among virtual
        ids: expert_share is K_e / K, virtual is "held"); Astrom and Hagglund 1995, PID Controllers.
State:  bias_U of a router that chooses with one; its own error_U, change_U of the step before.
Study:  configs/studies/zero_experts.py
Differs from the paper: LongCat prints only the integral term (balance/proportional.py); gains are
        not given. In this form, of moves, the bias itself is the sum of the errors, so the limit
        on it is what stops the sum from winding up where a load cannot be reached.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core import controllers
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config(controllers.Aim):
  speed: float = 0.1  # of all three; the knob bias_speed replaces it
  proportional: float = 1.0
  integral: float = 1.0
  derivative: float = 0.0
  limit: float = 1.0  # of the size of a bias: scores are within 0..1

  def __post_init__(self):
    super().__post_init__()
    if self.limit <= 0 or min(self.proportional, self.integral, self.derivative) < 0:
      raise Wrong(
        f"pid: limit is {self.limit} and the gains are {self.proportional}, {self.integral} and"
        f" {self.derivative}; use a limit above 0 and gains of at least 0."
      )


def init_state(cfg, U: int) -> dict:
  """What this rule keeps beside the router's state."""
  return {"error_U": jnp.zeros(U), "change_U": jnp.zeros(U)}


def update(params, state, sums, knobs, cfg):
  """The state after a step, from the counts of the whole step.

  >>> state = {"bias_U": jnp.zeros(2), **init_state(Config(), 2)}
  >>> update({}, state, {"count_U": jnp.array([3., 1.])}, {}, Config(1.0))["bias_U"].tolist()
  [-0.5, 0.5]
  """
  error_U = controllers.error(sums, cfg)
  change_U = error_U - state["error_U"]
  step_U = cfg.integral * error_U + cfg.proportional * change_U
  step_U = step_U + cfg.derivative * (change_U - state["change_U"])
  new = controllers.moved(state, step_U, sums, knobs, cfg)
  inside_U = jnp.clip(new["bias_U"], -cfg.limit, cfg.limit)
  bias_U = jnp.where(controllers.moves(sums, cfg) > 0, inside_U, new["bias_U"])
  return {**new, "bias_U": bias_U, "error_U": error_U, "change_U": change_U}
