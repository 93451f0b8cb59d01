"""Strict mode: the losses of a run have the same bits on expert:2, expert:4, expert:8, ...

Paper:  Meituan 2025 (LongCat-Flash), arXiv:2509.01322, computes in a fixed order to reproduce runs.
Config: `train.strict`, with the dispatch `ordered` in every MoE layer. The mesh is `expert:n` of
        machines of one kind; CPUs cut a matmul by their threads, so that there runs with one
        JAX_NUM_CPU_DEVICES are alike.
Cost:   every device has the whole state and the whole batch and does the work of a step alone, but
        for the experts, of which it does its own (dispatch/ordered.py): a mode to find a difference
        with.

The step is one program for one device, and the only numbers in it that follow the mesh are how many
experts a device takes and among how many it adds up rows of which one alone is not zero. A program
for expert:1 takes another way through the compiler: of small models its bits are the same, of
larger ones and with rematerialisation the last ones may differ.
"""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import plugin, runs
from moejax.core.plugin import Wrong
from moejax.layers import moe


def check(cfg, mesh) -> None:
  """Refuses what has no fixed order."""
  others = [f"{axis}:{n}" for axis, n in mesh.shape.items() if axis != "expert" and n > 1]
  if others:
    raise Wrong(
      f"train.strict: sums over {', '.join(others)} have no fixed order; use a mesh of"
      " expert alone."
    )
  for _, layer in runs.find(cfg.model.layers, moe.Config):
    if plugin.stem(layer.dispatch) != "ordered":
      raise Wrong(
        f"train.strict: the dispatch {plugin.stem(layer.dispatch)!r} adds up in an order that"
        " follows the mesh; set model.moe.dispatch.name='ordered'."
      )


def whole(shapes, mesh):
  """The shapes of a state that lies whole on every device."""
  to = NamedSharding(mesh, P())
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes)


def step(step_fn, mesh):
  """step_fn(state, batch) on every device, each of which has all of both."""
  return jax.shard_map(step_fn, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
