"""Dropless dispatch: rows sorted by expert, so that the cost follows the choices that are used.

Plan:   any in which tokens or experts choose.
Cost:   one row per used choice. On a mesh every device sorts the rows of its own tokens and has all
        experts, which are gathered at the border; F may stay cut, at the price of one more sum.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from moejax.core import axes
from moejax.core.plan import TokenPlan
from moejax.core.rows import Rows
from pallas_kernels import routing, target


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Sort, run, add up: at once, or on every device of the context mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if not target.is_cut():
    return _local(plan, x_ND, experts), {}
  tokens = tuple(a for a in axes.TOKENS if a in mesh.shape)
  shards = math.prod(mesh.shape[a] for a in tokens)
  by_token = isinstance(plan, TokenPlan)
  if by_token:
    plan = plan.replace(slot_NK=None, capacity=0)  # not read here, and counted over all tokens
  # what cannot be cut is computed whole by every device
  cut = tokens if (len(x_ND) if by_token else plan.groups) % shards == 0 else ()
  slicing = tuple(a for a in axes.roles()["experts"]["F"] if a not in cut)
  table = {"N": cut, "C": cut, "F": slicing}
  param_specs = axes.specs(experts.params, mesh, table)
  partial = tuple(sorted(axes.used(param_specs) - set(cut)))  # axes over which F is cut

  def local(plan, x_nD, params):
    if cut and not by_token:
      plan = plan.local(lax.axis_index(cut), shards)
    return lax.psum(_local(plan, x_nD, experts._replace(params=params)), partial)

  x_spec = axes.spec("x_ND", x_ND.shape, {"N": cut}, mesh)
  specs = {"in_specs": (axes.specs(plan, mesh, table), x_spec, param_specs), "out_specs": x_spec}
  # check_vma is off: the loops and kernels inside carry no types of varying axes
  return jax.shard_map(local, **specs, check_vma=False)(plan, x_ND, experts.params), {}


def _local(plan, x_ND, experts):
  """Rows without an expert sort last, belong to no group and cost nothing."""
  expert_M, token_M, gate_M = plan.rows()
  order_M, place_M, size_E = routing.sort(expert_M, plan.num_experts)
  row_NK = None
  if isinstance(plan, TokenPlan):  # its rows lie as [N, K] before they are sorted
    row_NK = jnp.where(token_M < 0, len(token_M), place_M).reshape(plan.expert_NK.shape)
  return experts.to_tokens(Rows(x_ND, token_M[order_M], gate_M[order_M], row_NK), size_E)
