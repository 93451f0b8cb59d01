"""Loss-free balancing in which the mean bias stays where it is, so that biases cannot drift.

Paper:  Moonshot AI 2025 (Moonlight), arXiv:2502.16982.
State:  bias_U of a router that chooses with one (routers/sigmoid_topk.py).
Study:  configs/studies/router_shootout.py
"""

import dataclasses

import jax.numpy as jnp

from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  speed: float = 1e-3  # per step; the knob bias_speed replaces it


def update(params, state, sums, knobs, cfg):
  """The router's state after a step, from the counts of the whole step.

  >>> sums = {"count_U": jnp.array([5., 1., 0.])}
  >>> update({}, {"bias_U": jnp.zeros(3)}, sums, {}, Config(0.75))["bias_U"].round(3).tolist()
  [-1.0, 0.5, 0.5]
  """
  if "bias_U" not in state:
    raise Wrong(
      "zero_mean: the router has no bias to move; use a router with one, as 'sigmoid_topk'."
    )
  count_U = sums["count_U"]
  step_U = jnp.sign(count_U.mean() - count_U)
  move_U = knobs.get("bias_speed", cfg.speed) * (step_U - step_U.mean())
  return {**state, "bias_U": state["bias_U"] + move_U}
