"""A dispatch on every device: tokens cut over the token axes, experts over the expert axis.

What is inside sees its own tokens, its own part of the plan and its own experts, and says what goes
to whom. Without a mesh it sees everything, and there is nobody to send to.
"""

import math
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.core import axes
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong
from moejax.core.rows import Rows
from pallas_kernels import routing


class Cut(typing.NamedTuple):
  """Where a device is among the others."""

  tokens: tuple[str, ...]  # mesh axes over which tokens are cut
  expert: tuple[str, ...]  # those over which experts are, which are among them
  shards: int  # parts of the tokens
  owners: int  # parts of the experts

  def owner(self) -> jax.Array:
    """Which part of the experts is here."""
    return lax.axis_index(self.expert)

  def gathered(self, x: jax.Array) -> typing.Any:
    """[owners, ...] of every device that shares the experts with this one."""
    return lax.all_gather(x, self.expert) if self.expert else x[None]

  def highest(self, x: jax.Array) -> typing.Any:
    """The maximum over all devices."""
    return lax.pmax(x, self.tokens)


def run(name: str, local, plan, x_ND, experts) -> tuple[jax.Array, dict]:
  """(y_ND, sums) of local(plan, x_nD, experts, cut) -> (y_nD, sums) on every device.

  `name` is that of the dispatch, for the sentence that says what cannot be cut.
  """
  mesh = jax.sharding.get_abstract_mesh()
  present = lambda names: tuple(a for a in names if a in mesh.shape)
  many = lambda names: math.prod(mesh.shape[a] for a in names)
  tokens, owning = present(axes.TOKENS), present(axes.ROLES["experts"]["E"])
  cut = Cut(tokens, owning, many(tokens), many(owning))
  _check(name, plan, len(x_ND), cut)
  if not mesh.shape:
    return local(plan, x_ND, experts, cut)
  table = {"E": owning, "F": axes.ROLES["experts"]["F"]}  # D is gathered at the border
  param_specs = axes.specs(experts.params, mesh, table)
  partial = tuple(sorted(axes.used(param_specs) - set(tokens)))  # axes over which F is cut

  def here(plan, x_nD, params):
    mine = plan.local(lax.axis_index(tokens), cut.shards)
    y_nD, sums = local(mine, x_nD, experts._replace(params=params), cut)
    over = lambda key, x: lax.pmax(x, tokens) if key.endswith("_max") else lax.psum(x, tokens)
    return lax.psum(y_nD, partial), {key: over(key, x) for key, x in sums.items()}

  plan_specs = axes.specs(plan, mesh, {"N": tokens, "C": tokens})
  specs = {"in_specs": (plan_specs, P(tokens), param_specs), "out_specs": (P(tokens), P())}
  # check_vma is off: the loops and kernels inside carry no types of varying axes
  return jax.shard_map(here, **specs, check_vma=False)(plan, x_ND, experts.params)


def whole(plan):
  """The plan without its slots, which some dispatches do not read: nothing then counts over N."""
  return plan.replace(slot_NK=None, capacity=0) if isinstance(plan, TokenPlan) else plan


def own(plan, x_nD, rows, experts, cut: Cut) -> jax.Array:
  """What the experts of this device add to tokens, whose (expert_M, token_M, gate_M) are `rows`."""
  (expert_M, token_M, gate_M), e = rows, plan.num_experts // cut.owners
  expert_M = expert_M - e * cut.owner()
  mine_M = (expert_M >= 0) & (expert_M < e) & (token_M >= 0)
  order_M, place_M, size_e = routing.sort(jnp.where(mine_M, expert_M, e), e)
  token_M, row_NK = jnp.where(mine_M, token_M, -1), table(plan, place_M, mine_M)
  return experts.to_tokens(Rows(x_nD, token_M[order_M], gate_M[order_M], row_NK), size_e)


def table(plan, place_M: jax.Array, used_M: jax.Array) -> jax.Array | None:
  """row_NK, where the choices of a token went, len(place_M) for one that is not used.

  None for a plan in which experts choose: its rows do not lie by token.
  """
  if not isinstance(plan, TokenPlan):
    return None
  return jnp.where(used_M, place_M, len(place_M)).reshape(-1, plan.expert_NK.shape[1])


def _check(name, plan, tokens, cut):
  """One sentence for what cannot be cut."""
  counted = isinstance(plan, TokenPlan) and plan.slot_NK is None
  if counted and tokens % cut.shards:
    raise Wrong(
      f"{name}: {tokens} tokens cannot be cut over {cut.shards} devices; make the batch size times"
      " the length of a sequence a multiple of that number."
    )
  if not counted and plan.groups % cut.shards:
    raise Wrong(
      f"{name}: {plan.groups} groups of tokens cannot be cut over {cut.shards} devices; make the"
      " batch size or model.moe.groups a multiple of that number."
    )
  if plan.num_experts % cut.owners:
    raise Wrong(
      f"{name}: {plan.num_experts} experts cannot be cut over {cut.owners} devices; use a mesh"
      " whose expert axis divides them."
    )
