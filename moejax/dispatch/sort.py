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


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Sort, run, add up: at once, or on every device of the context mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _local(plan, x_ND, experts), {}
  tokens = tuple(a for a in axes.TOKENS if a in mesh.shape)
  shards = math.prod(mesh.shape[a] for a in tokens)
  by_token = isinstance(plan, TokenPlan)
  if by_token:
    plan = plan.replace(slot_NK=None, capacity=0)  # not read here, and counted over all tokens
  # what cannot be cut is computed whole by every device
  cut = tokens if (len(x_ND) if by_token else plan.groups) % shards == 0 else ()
  table = {"N": cut, "C": cut, "F": axes.ROLES["experts"]["F"]}
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
  M = len(expert_M)
  order_M = order(expert_M, plan.num_experts)
  # bincount drops ids beyond its length, but counts negative ones into bin 0: rows() has none
  size_E = jnp.bincount(expert_M, length=plan.num_experts)
  row_NK = None
  if isinstance(plan, TokenPlan):  # its rows lie as [N, K] before they are sorted
    row_M = jnp.zeros_like(order_M).at[order_M].set(jnp.arange(M, dtype=order_M.dtype))
    row_NK = jnp.where(token_M < 0, M, row_M).reshape(plan.expert_NK.shape)
  return experts.to_tokens(Rows(x_ND, token_M[order_M], gate_M[order_M], row_NK), size_E)


def order(expert_M: jax.Array, num_experts: int) -> jax.Array:
  """The rows by expert, in their order within one.

  Expert and row in one integer, where both fit, sort about three times faster than a stable sort.

  >>> order(jnp.array([2, 0, 1, 0]), 2).tolist()
  [1, 3, 2, 0]
  """
  M = len(expert_M)
  if (num_experts + 1) * M >= 2**31:
    return jnp.argsort(expert_M, stable=True).astype(jnp.int32)
  key_M = expert_M.astype(jnp.int32) * M + jnp.arange(M, dtype=jnp.int32)
  return jnp.sort(key_M) % M
