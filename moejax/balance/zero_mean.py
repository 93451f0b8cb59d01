"""Loss-free balancing in which the mean bias stays where it is, so that biases cannot drift.

Paper:  Moonshot AI 2025 (Moonlight), arXiv:2502.16982.
State:  bias_U of a router that chooses with one (routers/sigmoid_topk.py).
Study:  configs/studies/auxfree_vs_aux.py
"""

import dataclasses

import jax.numpy as jnp

from moejax.core import controllers


@dataclasses.dataclass(frozen=True)
class Config(controllers.Aim):
  speed: float = 1e-3  # per step; the knob bias_speed replaces it


def update(params, state, sums, knobs, cfg):
  """The router's state after a step, from the counts of the whole step.

  >>> sums = {"count_U": jnp.array([5., 1., 0.])}
  >>> update({}, {"bias_U": jnp.zeros(3)}, sums, {}, Config(0.75))["bias_U"].round(3).tolist()
  [-1.0, 0.5, 0.5]
  """
  step_U, moves_U = jnp.sign(controllers.error(sums, cfg)), controllers.moves(sums, cfg)
  step_U = step_U - jnp.sum(step_U * moves_U) / moves_U.sum()
  return controllers.moved(state, step_U, sums, knobs, cfg)
