"""The balance loss of a gate that chooses several ids and fewer with time.

Paper:  Nie et al. 2021 (EvoMoE), arXiv:2112.14397.
Sums:   gate_U (gates of the chosen, 0 for the others); reads count_U and tokens of the layer.
Value:  U * sum of mean gate * share of tokens that chose the id: even, the gates of a token times
        its choices; U at collapse on any ids with gates that sum to one.
Study:  configs/studies/evomoe.py
Differs from the paper: gates are those that the router leaves (routers/dense_to_sparse.py), and
        with another router its softmax over all ids. Counts carry no gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.core import routing
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  weight: float = 0.01


def observe(plan, logit_NU, inputs, cfg):
  """The sum of one layer."""
  if not isinstance(plan, TokenPlan):
    raise Wrong(
      "dts: it counts the choices of tokens, and this router lets experts choose; take the balance"
      " entry out."
    )
  U, expert_NK = logit_NU.shape[1], plan.expert_NK
  gate_NU = inputs.extras.get("gate_NU")
  gate_NU = jax.nn.softmax(logit_NU) if gate_NU is None else gate_NU
  at_NK = jnp.where(expert_NK < 0, U, expert_NK)
  return {"gate_U": jnp.zeros(U).at[at_NK].add(routing.take(gate_NU, expert_NK), mode="drop")}


def loss(sums_L, past_L, cfg):
  """The loss of a stack of layers, of this micro-batch alone.

  >>> even = {"count_U": jnp.ones((1, 4)), "gate_U": jnp.ones((1, 4)), "tokens": jnp.full(1, 4.)}
  >>> float(loss(even, {}, Config()))
  1.0
  """
  count_LU, token_L1 = sums_L["count_U"], jnp.maximum(sums_L["tokens"], 1)[:, None]
  share_LU = jax.lax.stop_gradient(count_LU) / token_L1
  return count_LU.shape[1] * jnp.sum(sums_L["gate_U"] / token_L1 * share_LU)
