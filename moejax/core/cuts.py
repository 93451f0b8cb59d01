"""A dispatch on every device: tokens cut over the token axes, experts by their role.

Axes that cut experts and no tokens in attention, as `tensor` may, cut tokens here. Devices among
which the width of experts is cut have the same tokens: those of all of them, gathered at the border
and summed back, where the axis cuts tokens elsewhere.

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
from pallas_kernels import routing, target


class Cut(typing.NamedTuple):
  """Where a device is among the others.

  Owners are counted along `expert`, the last axis fastest. `inside` and `across` name a part of
  them: the owners of one node, or those that have the same place in every node.
  """

  tokens: tuple[str, ...]  # mesh axes over which tokens are cut
  expert: tuple[str, ...]  # those over which experts are, which are among them
  shards: int  # parts of the tokens
  owners: int  # parts of the experts
  total: int  # of all owners along `expert`
  stride: int = 1  # from one owner to the next
  slicing: tuple[str, ...] = ()  # axes over which the width of an expert is cut, tokens too
  slices: int = 1  # parts of that width

  def owner(self) -> jax.Array:
    """Which part of the experts is here."""
    return lax.axis_index(self.expert) // self.stride % self.owners

  def gathered(self, x: jax.Array) -> typing.Any:
    """[owners, ...] of every device that shares the experts with this one."""
    if not self.expert:
      return x[None]
    return lax.all_gather(x, self.expert, axis_index_groups=self.groups())

  def highest(self, x: jax.Array) -> typing.Any:
    """The maximum over all devices."""
    return lax.pmax(x, self.tokens)

  def inside(self, inner: int) -> "Cut":
    """The owners of this device's node, which has `inner` of them."""
    return self._replace(owners=inner, expert=self.expert if inner > 1 else ())

  def across(self, inner: int) -> "Cut":
    """The owners with this one's place in every node."""
    nodes = self.owners // inner
    axis = self.expert if nodes > 1 else ()
    return self._replace(owners=nodes, stride=self.stride * inner, expert=axis)

  def groups(self) -> list[list[int]] | None:
    """The owners that talk to each other, by index; None where all do.

    >>> cut = Cut((), ("expert",), 4, 4, 4)
    >>> cut.groups(), cut.inside(2).groups(), cut.across(2).groups()
    (None, [[0, 1], [2, 3]], [[0, 2], [1, 3]])
    """
    if self.owners == self.total:
      return None
    step, block = self.stride, self.stride * self.owners
    first = [b + o for b in range(0, self.total, block) for o in range(step)]
    return [[f + step * i for i in range(self.owners)] for f in first]

  def node(self, inner: int | None) -> int:
    """How many owners a node has: the last of several axes of experts, or what `inner` says."""
    if inner is None:
      mesh = jax.sharding.get_abstract_mesh()
      return mesh.shape[self.expert[-1]] if len(self.expert) > 1 else self.owners
    if self.owners > 1 and self.owners % inner:
      raise Wrong(
        f"dispatch: {self.owners} parts of the experts do not form nodes of {inner}; set"
        " model.moe.dispatch.inner to a divisor, or take another mesh."
      )
    return min(inner, self.owners)


def run(name: str, local, plan, x_ND, experts, spread=False) -> tuple[jax.Array, dict]:
  """(y_ND, sums) of local(plan, x_nD, experts, cut) -> (y_nD, sums) on every device.

  `name` is that of the dispatch, for the sentence that says what cannot be cut. With `spread`,
  tokens are cut over the axes of F as well, and `local` sees to it that y is a whole sum.
  """
  mesh = jax.sharding.get_abstract_mesh()
  present = lambda names: tuple(a for a in names if a in mesh.shape)
  many = lambda names: math.prod(mesh.shape[a] for a in names)
  owning, slicing, more = (present(axes.roles()["experts"][letter]) for letter in "EFN")
  shared = () if spread else slicing
  tokens = tuple(a for a in present(axes.TOKENS) if a not in shared)
  tokens += tuple(a for a in owning + (slicing if spread else ()) if a not in tokens)
  tokens += tuple(a for a in more if a not in tokens)
  cut = Cut(tokens, owning, many(tokens), many(owning), many(owning))
  if spread:
    cut = cut._replace(slicing=slicing, slices=many(slicing))
  _check(name, plan, len(x_ND), cut, experts.params)
  if not target.open_axes():
    return local(plan, x_ND, experts, cut)
  table = {"E": owning, "F": slicing}  # D is gathered at the border
  param_specs = axes.specs(experts.params, mesh, table)
  partial = tuple(sorted(axes.used(param_specs) - set(tokens)))  # axes over which F is cut
  home = tuple(a for a in present(axes.TOKENS) if a in partial)  # those that cut tokens elsewhere
  home = home if tokens + home == present(axes.TOKENS) else ()  # else not in the order of tokens
  partial = tuple(a for a in partial if a not in home)

  def here(plan, x_nD, params, after_nD):
    mine = plan.local(lax.axis_index(tokens), cut.shards)
    here = experts._replace(params=params, after_ND=after_nD)
    y_nD, sums = local(mine, x_nD, here, cut)
    over = lambda key, x: lax.pmax(x, tokens) if key.endswith("_max") else lax.psum(x, tokens)
    y_nD = lax.psum(y_nD, partial)
    y_nD = lax.psum_scatter(y_nD, home, tiled=True) if home else y_nD
    return y_nD, {key: over(key, x) for key, x in sums.items()}

  plan_specs = axes.specs(plan, mesh, {"N": tokens, "C": tokens})
  in_specs = (plan_specs, P(tokens), param_specs, P(tokens))
  specs = {"in_specs": in_specs, "out_specs": (P(tokens + home), P())}
  # check_vma is off: the loops and kernels inside carry no types of varying axes
  on_all = jax.shard_map(here, **specs, check_vma=False)
  return on_all(plan, x_ND, experts.params, experts.after_ND)


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


def _check(name, plan, tokens, cut, params):
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
  for path, leaf in jax.tree_util.tree_leaves_with_path(params) if cut.slices > 1 else ():
    width = leaf.shape[axes.letters(path[-1].key).find("F")]
    if width % cut.slices:
      raise Wrong(
        f"{name}: the width {width} of an expert cannot be cut over {cut.slices} devices; change"
        " model.moe.hidden or take another mesh."
      )
  if plan.num_experts % cut.owners:
    raise Wrong(
      f"{name}: {plan.num_experts} experts cannot be cut over {cut.owners} devices; use a mesh"
      " whose expert axis divides them."
    )
