"""The adaptive L1 loss of ReLU routing: gates cost what keeps k experts active on average.

Paper:  Wang et al. 2024 (ReMoE), arXiv:2412.14711, with its weighting of gates by load.
Sums:   gate_U (the sum of each id's positive logits, times the coefficient); reads count_U and
        tokens of the layer.
State:  its own coefficient_G (G = 1): times `factor` after a step in which more than k ids were
        active for a token on average, divided by it where fewer were.
Value:  per layer the coefficient times the mean sum of a token's gates, where the load is even and
        tokens have k choices on average. The gates of an id count in proportion to its load.
Study:  configs/studies/top_p.py
Differs from the paper: every layer has a coefficient of its own and follows its own sparsity, in
        place of one for the mean over layers.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 1.0
  k: float = 2.0  # choices of a token, on average
  start: float = 1e-8  # of the coefficient
  factor: float = 1.2
  by_load: bool = True  # False: gates count alike, which is plain L1

  def __post_init__(self):
    if self.k <= 0 or self.start <= 0 or self.factor < 1:
      raise Wrong(
        f"sparsity: k is {self.k}, start {self.start} and factor {self.factor}; use k and start"
        " above 0 and a factor of at least 1."
      )


def init_state(cfg, U: int) -> dict:
  """What this rule keeps beside the router's state."""
  return {"coefficient_G": jnp.full(1, cfg.start)}


def observe(plan, logit_NU, inputs, cfg):
  """The sums of one layer."""
  gate_NU = jax.nn.relu(logit_NU)
  if inputs.valid_N is not None:
    gate_NU = jnp.where(inputs.valid_N[:, None], gate_NU, 0)
  return {"gate_U": inputs.state["coefficient_G"] * gate_NU.sum(0)}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> one = {"gate_U": jnp.array([[3., 1.]]), "count_U": jnp.array([[4., 0.]])}
  >>> one["tokens"] = jnp.array([2.])
  >>> float(loss(one, {}, Config(k=2.0))), float(loss(one, {}, Config(by_load=False)))
  (3.0, 2.0)
  """
  gate_LU, token_L1 = sums_L["gate_U"], jnp.maximum(sums_L["tokens"], 1)[:, None]
  load_LU = jax.lax.stop_gradient(sums_L["count_U"]) / token_L1 * gate_LU.shape[1] / cfg.k
  return jnp.sum((load_LU if cfg.by_load else 1) * gate_LU / token_L1)


def update(params, state, sums, knobs, cfg):
  """The state after a step, from the counts of the whole step.

  >>> state, sums = {"coefficient_G": jnp.ones(1)}, {"count_U": jnp.array([5., 1.]), "tokens": 2.0}
  >>> update({}, state, sums, {}, Config(k=2.0, factor=2.0))["coefficient_G"].tolist()
  [2.0]
  """
  above = jnp.sign(sums["count_U"].sum() - cfg.k * sums["tokens"])
  return {**state, "coefficient_G": state["coefficient_G"] * cfg.factor**above}
