"""Expert parallelism with slots: tokens travel to the devices of their experts and back.

Paper:  Lepikhin et al. 2020, arXiv:2006.16668.
Plan:   with slots, and groups that lie inside one token shard; without a mesh it is `gather`.
Cost:   E * C rows over all devices, each sent twice when its expert is elsewhere.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from moejax.core import cuts
from moejax.core.rows import Rows


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Every device fills all experts' slots from its tokens; all_to_all swaps experts for devices."""
  plan.slots()  # a plan without any is refused by its own sentence
  return cuts.run("all_to_all", _local, plan, x_ND, experts)


def _local(plan, x_nD, experts, cut):
  slots = plan.slots()
  E, c = slots.token_EC.shape

  def swap(x, split, join):
    return lax.all_to_all(x, cut.expert, split, join, tiled=True) if cut.expert else x

  rows = Rows(x_nD, slots.token_EC.ravel(), slots.gate_EC.ravel())
  x_eCD = swap(rows.x_MD().reshape(E, c, -1), 0, 1)
  e, C, D = x_eCD.shape
  here = Rows(x_eCD.reshape(e * C, D), jnp.arange(e * C), jnp.ones(e * C))
  y_eCD = experts.fn(experts.params, here, jnp.full((e,), C)).reshape(e, C, D)
  y_nD = rows.combine(swap(y_eCD, 1, 0).reshape(E * c, D))
  away_E = jnp.arange(E) // e != cut.owner()
  return y_nD, {"moved": jnp.sum(away_E[:, None] & (slots.token_EC >= 0))}
