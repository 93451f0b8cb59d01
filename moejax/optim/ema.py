"""An exponential moving average of the params, kept in float32."""

import jax
import jax.numpy as jnp

from moejax.core import memory


def init(params):
  """The average before the first step: a copy, since the params are donated to the step."""
  return jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)


def update(ema, params, decay: float, step):
  """The average after a step; early on it follows faster, so that the start is forgotten.

  >>> update({"w_D": jnp.zeros(2)}, {"w_D": jnp.ones(2)}, 0.99, step=2)["w_D"].tolist()
  [0.75, 0.75]
  """
  keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return memory.mapped(
    lambda old, new: keep * old + (1 - keep) * new.astype(jnp.float32), ema, params
  )
