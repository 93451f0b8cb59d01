"""Slots to the owners of their experts and back: as many rows to each, used or not.

A transport of slots is a pair of linear maps, each the transpose of the other:
there(x_EcD) -> x_eCD, what arrives at the experts of this device, and back(y_eCD) -> y_EcD.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from moejax.core import cuts
from moejax.core.plan import TokenPlan
from moejax.core.rows import Rows


def filled(plan, x_nD: jax.Array) -> Rows:
  """The slots of all experts for the tokens of this device, as rows [E * c, D]; empty ones are 0.

  Where tokens choose, the way back adds the choices of a token up in their order, on any machine.
  """
  slots = plan.slots()
  row_NK = None
  if isinstance(plan, TokenPlan) and plan.slot_NK is not None:
    at_NK = plan.expert_NK * plan.capacity + plan.slot_NK
    row_NK = jnp.where(plan.real_NK(), at_NK, slots.token_EC.size)
  return Rows(x_nD, slots.token_EC.ravel(), slots.gate_EC.ravel(), row_NK)


def run(x_eCD: jax.Array, experts) -> jax.Array:
  """Every expert of this device on its slots."""
  e, C, D = x_eCD.shape
  x_eCD = checkpoint_name(experts.waiting(x_eCD), "arrived")
  here = Rows(x_eCD.reshape(e * C, D), jnp.arange(e * C), jnp.ones(e * C))
  return experts.fn(experts.params, here, jnp.full((e,), C)).reshape(e, C, D)


def local(plan, x_nD, experts, cut: cuts.Cut, there, back) -> tuple[jax.Array, dict]:
  """On one device: fill, send, run, send back, add up."""
  rows, E = filled(plan, x_nD), plan.num_experts
  x_EcD = rows.x_MD().reshape(E, -1, x_nD.shape[1])
  y_EcD = back(run(there(x_EcD), experts))
  return rows.combine(y_EcD.reshape(-1, x_nD.shape[1])), {"moved": moved(rows, E, cut)}


def moved(rows: Rows, E: int, cut: cuts.Cut) -> jax.Array:
  """Used slots whose expert is elsewhere."""
  away_E = jnp.arange(E) // (E // cut.owners) != cut.owner()
  return jnp.sum(away_E[:, None] & (rows.token_M.reshape(E, -1) >= 0))


def swap(x: jax.Array, cut: cuts.Cut, split: int, join: int) -> jax.Array:
  """all_to_all among the owners of `cut`: part i of one axis goes to owner i, and joins another."""
  if not cut.expert:
    return x
  how = {"axis_index_groups": cut.groups(), "tiled": True}
  return lax.all_to_all(x, cut.expert, split, join, **how)
