"""Expert parallelism in an order that no number of owners changes: that of `train.strict`.

Paper:  Meituan 2025 (LongCat-Flash), arXiv:2509.01322, computes in a fixed order to reproduce runs.
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   tokens are not cut: every device has all, and works on the rows of its own experts, one
        expert after another, as one with all experts would. One row per choice is summed over the
        owners in each direction, where one of them has something to add and the others zeros.

Where every device has the experts of all (inside the step of train/strict.py) it works on its own,
and gradients of weights are summed over the owners in the same way.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import axes, cuts
from moejax.core.plugin import Wrong
from moejax.core.rows import Rows
from pallas_kernels import routing, target


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Rows by expert, through their experts at their owners, and added up choice by choice."""
  mesh, E = jax.sharding.get_abstract_mesh(), plan.num_experts
  owning = tuple(a for a in axes.roles()["experts"]["E"] if a in mesh.shape)
  owners = math.prod(mesh.shape[a] for a in owning)
  if E % owners:
    raise Wrong(
      f"ordered: {E} experts cannot be cut over {owners} devices; use a mesh whose expert axis"
      " divides them."
    )
  shared = bool(owning) and set(owning) <= set(mesh.manual_axes)
  how = _How(experts.fn, owning, owners, shared)
  plan, x_ND = jax.tree.map(functools.partial(_everywhere, mesh), (cuts.whole(plan), x_ND))
  expert_M, token_M, gate_M = plan.rows()
  order_M, place_M, size_E = routing.sort(expert_M, E)
  row_NK = cuts.table(plan, place_M, token_M >= 0)
  rows = Rows(x_ND, token_M[order_M], gate_M[order_M], row_NK)
  y_MD: typing.Any = _through(how, rows.x_MD(), experts.params, size_E)
  return rows.combine(y_MD), {}


class _How(typing.NamedTuple):
  fn: typing.Callable
  owning: tuple[str, ...]  # mesh axes over which experts are cut
  owners: int
  shared: bool  # whether this is one device of many, which has the weights of all experts


def _everywhere(mesh, a):
  return lax.with_sharding_constraint(a, NamedSharding(mesh, P())) if target.open_axes() else a


# Both passes are written out: the transpose of a shard_map would add up copies, in an order that
# follows their number.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _through(how, x_MD, params, size_E) -> typing.Any:
  return _on_owners(how, _forward, params, size_E, x_MD)[0]


def _saving(how, x_MD, params, size_E):
  return _through(how, x_MD, params, size_E), (x_MD, params, size_E)


def _gradients(how, saved, dy_MD):
  x_MD, params, size_E = saved
  dx_MD, dparams = _on_owners(how, _backward, params, size_E, x_MD, dy_MD)
  return dx_MD, dparams, None


_through.defvjp(_saving, _gradients)


def _on_owners(how, one, params, size_E, *given_MD):
  """(the sum over the owners of what their experts have for every row, gradients of weights).

  one(fn, w, size, *given_MD) -> (rows, dw or None), for one expert whose `size` rows come first.
  """
  if how.shared or not how.owning:
    return _here(how, one, params, size_E, *given_MD)
  mesh = jax.sharding.get_abstract_mesh()
  specs = axes.specs(params, mesh, {"E": how.owning})
  in_specs = (specs, P(), *(P() for _ in given_MD))
  here, own_specs = functools.partial(_here, how, one), specs if one is _backward else None
  on_all = jax.shard_map(here, in_specs=in_specs, out_specs=(P(), own_specs), check_vma=False)
  return on_all(params, size_E, *given_MD)


def _here(how, one, params, size_E, *given_MD):
  """The experts of this device, one after another: a loop whose body no number of owners changes.

  Even one expert is a loop: its bounds are not known to the compiler, which would take it apart.
  """
  E, M = len(size_E), len(given_MD[0])
  e, first_E = E // how.owners, jnp.cumsum(size_E) - size_E
  start = e * lax.axis_index(how.owning) if how.owning else jnp.int32(0)
  stored = start if how.shared else 0  # where the weights of the first of them are
  turned = lambda a_MD, by: a_MD[(jnp.arange(M) + by) % M]

  def step(i, sums):
    sum_MD, own = sums
    first, size = first_E[start + i], size_E[start + i]
    w = jax.tree.map(lambda leaf: leaf[stored + i], params)
    out_MD, dw = one(how.fn, w, size, *(turned(a_MD, first) for a_MD in given_MD))
    own_M1 = (jnp.arange(M) < size)[:, None]
    own = None if dw is None else jax.tree.map(lambda a, d: a.at[stored + i].set(d), own, dw)
    return sum_MD + turned(jnp.where(own_M1, out_MD, 0), -first), own

  own = jax.tree.map(jnp.zeros_like, params) if one is _backward else None
  count, start, stored = lax.optimization_barrier((jnp.int32(e), start, stored))
  sum_MD, own = lax.fori_loop(0, count, step, (jnp.zeros_like(given_MD[0]), own))
  if how.shared:
    own = lax.psum(own, how.owning)
  return lax.optimization_barrier((lax.psum(sum_MD, how.owning), own))


def _forward(fn, w, size, x_MD):
  return _expert(fn, size, w, x_MD), None


def _backward(fn, w, size, x_MD, dy_MD):
  _, back = jax.vjp(functools.partial(_expert, fn, size), w, x_MD)
  dw, dx_MD = back(dy_MD)
  return dx_MD, dw


def _expert(fn, size, w, x_MD):
  """One expert, as if there were no other."""
  M = len(x_MD)
  token_M = jnp.where(jnp.arange(M) < size, jnp.arange(M), -1)
  params = {name: leaf[None] for name, leaf in w.items()}
  return fn(params, Rows(x_MD, token_M, jnp.ones(M, x_MD.dtype)), size[None])
