"""Loss-free balancing in proportion: a bias moves by `speed` times the share its id is short of.

Paper:  LongCat-Flash 2025, arXiv:2509.01322, where expert_share is K_e / K and virtual is "held":
        speed * (K_e / (K N) - share) for each of N experts; Wang et al. 2024, arXiv:2408.15664.
State:  bias_U of a router that chooses with one (routers/biased_topk.py).
Study:  configs/studies/auxfree_vs_aux.py
Differs from the paper: Wang et al. measure the error in tokens, so that speed follows the size of
        the batch. LongCat calls its rule PID; as printed it is this one.
"""

import dataclasses

from moejax.core import controllers


@dataclasses.dataclass(frozen=True)
class Config(controllers.Aim):
  speed: float = 0.1  # per step; the knob bias_speed replaces it


def update(params, state, sums, knobs, cfg):
  """The router's state after a step, from the counts of the whole step.

  >>> import jax.numpy as jnp
  >>> sums = {"count_U": jnp.array([3., 1.])}
  >>> update({}, {"bias_U": jnp.zeros(2)}, sums, {}, Config(2.0))["bias_U"].tolist()
  [-0.5, 0.5]
  """
  return controllers.moved(state, controllers.error(sums, cfg), sums, knobs, cfg)
