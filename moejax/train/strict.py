"""Strict mode: the losses of a run have the same bits on expert:2 and expert:4.

Config: `train.strict`, with the dispatch `ordered` in every MoE layer. The meshes are `expert:n`
        alone or beside one fixed number of `data`. Tokens are not cut over the owners, experts work
        one after another and their rows are added up choice by choice (dispatch/ordered.py);
        gradients are whole on every device before anything is summed over them, as their norm.
        On one owner, on eight, and beside `data` the last bits still differ (test_strict.py): some
        sum there has another order.
        It costs the work of the dense layers once per owner: a mode to find a difference with.
"""

import functools

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import axes, plugin, runs
from moejax.core.plugin import Wrong
from moejax.layers import moe

AXES = ("data", "expert")


def check(cfg, mesh) -> None:
  """Refuses what has no fixed order."""
  others = [f"{axis}:{size}" for axis, size in mesh.shape.items() if axis not in AXES and size > 1]
  if others:
    raise Wrong(
      f"train.strict: sums over {', '.join(others)} have no fixed order; use a mesh of expert, or"
      " of data and expert."
    )
  for _, layer in runs.find(cfg.model.layers, moe.Config):
    if plugin.stem(layer.dispatch) != "ordered":
      raise Wrong(
        f"train.strict: the dispatch {plugin.stem(layer.dispatch)!r} adds up in an order that"
        " follows the mesh; set model.moe.dispatch.name='ordered'."
      )


def whole(shapes, mesh):
  """The shapes of a state that lies whole on every device: its norms are sums of one order."""
  to = NamedSharding(mesh, P())
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes)


def step(step_fn, mesh):
  """step_fn over a batch that is not cut over owners."""
  rows = NamedSharding(mesh, P(tuple(axis for axis in ("data",) if axis in mesh.shape)))

  def strict(state, batch):
    batch = jax.tree.map(lambda a: lax.with_sharding_constraint(a, rows), batch)
    return step_fn(state, lax.optimization_barrier(batch))

  return strict


def loss(loss_fn, mesh):
  """loss_fn with gradients that are whole on every device."""

  def strict(params, *rest):
    with axes.whole_over("expert"):
      return loss_fn(jax.tree.map(functools.partial(_whole, mesh), params), *rest)

  return strict


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(mesh, leaf):
  return leaf


def _gradient(mesh, _, d):
  return (lax.optimization_barrier(lax.with_sharding_constraint(d, NamedSharding(mesh, P()))),)


_whole.defvjp(lambda mesh, leaf: (leaf, None), _gradient)
