"""Expert parallelism with slots: tokens travel to the devices of their experts and back.

Paper:  Lepikhin et al. 2020, arXiv:2006.16668.
Plan:   with slots, and groups that lie inside one token shard; without a mesh it is `gather`.
Cost:   E * C rows over all devices, each sent twice when its expert is elsewhere.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.core import axes
from moejax.core.plugin import Wrong
from moejax.core.rows import Rows


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Every device fills all experts' slots from its tokens; all_to_all swaps experts for devices."""
  mesh = jax.sharding.get_abstract_mesh()
  present = lambda names: tuple(a for a in names if a in mesh.shape)
  tokens, expert = present(axes.TOKENS), present(axes.ROLES["experts"]["E"])
  shards = math.prod(mesh.shape[a] for a in tokens)
  _check(plan.slots(), shards, math.prod(mesh.shape[a] for a in expert))
  table = {"E": expert, "F": axes.ROLES["experts"]["F"]}  # D is gathered at the border
  param_specs = axes.specs(experts.params, mesh, table)
  plan_specs = axes.specs(plan, mesh, {"N": tokens, "C": tokens})
  partial = tuple(sorted(axes.used(param_specs) - set(tokens)))  # axes over which F is cut

  def swap(x, split, join):
    return lax.all_to_all(x, expert, split, join, tiled=True) if expert else x

  def local(plan, x_nD, params):
    slots = plan.local(lax.axis_index(tokens), shards).slots()
    E, c = slots.token_EC.shape
    rows = Rows(x_nD, slots.token_EC.ravel(), slots.gate_EC.ravel())
    x_eCD = swap(rows.x_MD().reshape(E, c, -1), 0, 1)
    e, C, D = x_eCD.shape
    here = Rows(x_eCD.reshape(e * C, D), jnp.arange(e * C), jnp.ones(e * C))
    y_eCD = experts.fn(params, here, jnp.full((e,), C)).reshape(e, C, D)
    y_nD = rows.combine(swap(y_eCD, 1, 0).reshape(E * c, D))
    away_E = jnp.arange(E) // e != lax.axis_index(expert)
    moved = jnp.sum(away_E[:, None] & (slots.token_EC >= 0))
    return lax.psum(y_nD, partial), {"moved": lax.psum(moved, tokens)}

  if not mesh.shape:
    return local(plan, x_ND, experts.params)
  # check_vma is off: the loops and kernels inside carry no types of varying axes
  specs = {"in_specs": (plan_specs, P(tokens), param_specs), "out_specs": (P(tokens), P())}
  return jax.shard_map(local, **specs, check_vma=False)(plan, x_ND, experts.params)


def _check(plan, shards, owners):
  """One sentence for what cannot be cut."""
  if plan.groups % shards:
    raise Wrong(
      f"all_to_all: {plan.groups} groups of tokens cannot be cut over {shards} devices; make the"
      " batch size or model.moe.groups a multiple of that number."
    )
  if plan.num_experts % owners:
    raise Wrong(
      f"all_to_all: {plan.num_experts} experts cannot be cut over {owners} devices; use a mesh"
      " whose expert axis divides them."
    )
