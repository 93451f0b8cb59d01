"""The mesh of a run, and where its arrays lie on it.

Section:  `mesh`, a text such as "data:2,expert:4"; empty = all devices on `data`. Axes are among
          data, fsdp, expert, context, tensor and stage (what each cuts: core/axes.py). A mesh
          smaller than the machine takes its first devices, so one config compares mesh sizes.
"""

import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import axes, plugin, runs
from moejax.core.plugin import Wrong
from moejax.layers import moe

AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")


def parse(text: str) -> dict[str, int]:
  """The axes of a mesh and their sizes.

  >>> parse("data:2, expert:4"), parse("")
  ({'data': 2, 'expert': 4}, {})
  """
  sizes = {}
  for word in filter(None, (word.strip() for word in text.split(","))):
    axis, _, size = (part.strip() for part in word.partition(":"))
    if axis not in AXES:
      raise Wrong(f"mesh: there is no axis {axis!r}. {plugin.hint(axis, AXES)}")
    if not size.isdecimal() or int(size) < 1:
      raise Wrong(f"mesh: {word!r} gives no size; write AXIS:NUMBER, such as 'data:2,expert:4'.")
    if axis in sizes:
      raise Wrong(f"mesh: the axis {axis!r} is given twice in {text!r}; give it once.")
    sizes[axis] = int(size)
  return sizes


def make(text: str, devices=None) -> Mesh:
  """The mesh of a section, over all devices unless some are given."""
  devices = jax.devices() if devices is None else devices
  sizes = parse(text) or {"data": len(devices)}
  wanted = math.prod(sizes.values())
  if wanted > len(devices):
    raise Wrong(
      f"mesh: {text!r} asks for {wanted} devices and there are {len(devices)}; ask for fewer, or"
      f" set JAX_NUM_CPU_DEVICES={wanted} for as many virtual ones on a CPU."
    )
  if wanted < len(devices) and jax.process_count() > 1:
    raise Wrong(
      f"mesh: {text!r} uses {wanted} of {len(devices)} devices, and {jax.process_count()} processes"
      " must all take part; use all devices."
    )
  return jax.make_mesh(
    tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices[:wanted]
  )


def token_axes(mesh) -> tuple[str, ...]:
  """The axes over which the rows of a batch are cut."""
  return tuple(axis for axis in axes.TOKENS if axis in mesh.shape)


def check(mesh, model_cfg, batch_size: int, accumulate: int = 1):
  """Refuses a batch or a number of experts that the mesh does not divide."""
  shards = math.prod(mesh.shape[axis] for axis in token_axes(mesh))
  if batch_size // accumulate % shards:
    of = f"micro-batches of {batch_size // accumulate} rows ({batch_size} in {accumulate} parts)"
    raise Wrong(
      f"mesh: {of} cannot be cut over {shards} devices ({_written(mesh)}); change"
      f" train.batch_size to a multiple of {shards * accumulate}, or the mesh."
    )
  owners = mesh.shape.get("expert", 1)
  for _, cfg in runs.find(model_cfg.layers, moe.Config):
    stored = cfg.stored or cfg.num_experts
    if stored % owners:
      raise Wrong(
        f"mesh: {stored} experts cannot be cut over expert:{owners}; use a mesh whose expert axis"
        " divides them, or change model.moe.num_experts."
      )


def batch(mesh) -> NamedSharding:
  """Where the arrays of a batch lie: rows cut over the token axes."""
  return NamedSharding(mesh, P(token_axes(mesh)))


def shardings(tree, mesh):
  """(the NamedSharding of every leaf by its suffix, what stays whole for want of a divisor).

  Any tree with suffixed leaves somewhere in it will do: params, moments, router state, averages.
  A leaf without a suffix (a counter, a key) and the small tables of `placement` are replicated.
  """
  whole = []

  def one(path, leaf):
    names = tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path)
    if "placement" in names or not re.search("_[A-Z]+$", names[-1]):
      return NamedSharding(mesh, P())
    table = axes.ROLES[axes.role(names)]
    spec = axes.spec(names[-1], leaf.shape, table, mesh)
    ideal = axes.spec(names[-1], (mesh.size,) * len(leaf.shape), table, mesh)
    for size, on, wanted in zip(leaf.shape, spec, ideal, strict=True):
      if wanted and not on:
        over = (wanted,) if isinstance(wanted, str) else wanted
        over = ",".join(f"{axis}:{mesh.shape[axis]}" for axis in over)
        whole.append(f"{'/'.join(names)}: {size} is not cut over {over}")
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, tree), whole


def _written(mesh):
  return ",".join(f"{axis}:{size}" for axis, size in mesh.shape.items())
