"""The mesh of a run, and where its arrays lie on it.

Section:  `mesh`, a text such as "data:2,expert:4"; empty = all devices on `data`. Axes are among
          data, fsdp, expert, context, tensor and stage (what each cuts: core/axes.py; how stages
          share a batch: layers/pipeline.py). A mesh smaller than the machine takes its first
          devices, so one config compares mesh sizes.
"""

import contextlib
import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import axes, plugin, runs
from moejax.core.plugin import Wrong
from moejax.layers import moe, pipeline


def parse(text: str) -> dict[str, int]:
  """The axes of a mesh and their sizes.

  >>> parse("data:2, expert:4"), parse("")
  ({'data': 2, 'expert': 4}, {})
  """
  sizes = {}
  for word in filter(None, (word.strip() for word in text.split(","))):
    axis, _, size = (part.strip() for part in word.partition(":"))
    if axis not in axes.AXES:
      raise Wrong(f"mesh: there is no axis {axis!r}. {plugin.hint(axis, axes.AXES)}")
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
  """The axes over which the rows of a batch are cut: a model may cut T tokens, and no T + 1."""
  return tuple(axis for axis in axes.ROWS if axis in mesh.shape)


def rows(mesh) -> int:
  """The rows of the smallest batch: one for each part that rows are cut into."""
  return math.prod(mesh.shape[axis] for axis in token_axes(mesh))


@contextlib.contextmanager
def entered(mesh, roles):
  """Inside, programs are for this mesh, and arrays lie on it by these roles."""
  with axes.by_roles(roles), jax.set_mesh(mesh):
    yield


def check(cfg, mesh):
  """Refuses a batch, a sequence or a number of experts that the mesh does not divide."""
  shards, accumulate = rows(mesh), cfg.train.accumulate
  size, text = cfg.train.batch_size, ",".join(f"{a}:{n}" for a, n in mesh.shape.items())
  _check_roles(cfg.roles, mesh, text)
  T, parts = cfg.data.seq_len, mesh.shape.get("context", 1)
  if size // accumulate % (shards * parts) and size // accumulate != shards:
    few = f"just {shards * accumulate}, so that context cuts rows, or " if parts > 1 else ""
    raise Wrong(
      f"mesh: micro-batches of {size // accumulate} rows (train.batch_size {size},"
      f" train.accumulate {accumulate}) cannot be cut over {shards * parts} devices ({text}); use a"
      f" batch_size that is {few}a multiple of {shards * parts * accumulate}, or a smaller mesh."
    )
  pipeline.check(cfg.model, size // accumulate, shards * parts, mesh.shape.get(pipeline.AXIS, 1))
  if parts > 1 and T % (2 * parts):
    raise Wrong(
      f"mesh: sequences of {T} cannot be cut over context:{parts}, whose devices have two parts"
      f" each; set data.seq_len to a multiple of {2 * parts}, or take another mesh."
    )
  owning = owning_axes(cfg, mesh)
  for _, layer in runs.find(cfg.model.layers, moe.Config):
    stored = layer.stored or layer.num_experts
    if stored % owners(cfg, mesh):
      over = ",".join(f"{a}:{mesh.shape[a]}" for a in owning)
      axis = "expert axis divides" if owning == ["expert"] else "axes of experts divide"
      raise Wrong(
        f"mesh: {stored} experts cannot be cut over {over}; use a mesh whose {axis}"
        " them, or change model.moe.num_experts."
      )


def owning_axes(cfg, mesh) -> list[str]:
  """The axes of the mesh over which a run has its experts."""
  return [axis for axis in axes.tables(cfg.roles)["experts"]["E"] if axis in mesh.shape]


def owners(cfg, mesh) -> int:
  """How many parts the experts of a run are cut into."""
  return math.prod(mesh.shape[axis] for axis in owning_axes(cfg, mesh))


def _check_roles(roles, mesh, text):
  """Refuses a role that names an axis which is not there."""
  for role in axes.USUAL:
    for letter, names in axes.parse(role, getattr(roles, role)).items():
      for name in names:
        if name not in mesh.shape:
          raise Wrong(
            f"roles.{role}: {letter} is cut over {name!r}, which the mesh {text} does not have; add"
            f" {name}:1 to the mesh, or take the axis out."
          )


def batch(array, mesh) -> jax.Array:
  """This process's rows of a batch, on the devices: cut over the axes of rows."""
  sharding = NamedSharding(mesh, P(token_axes(mesh)))
  return jax.make_array_from_process_local_data(sharding, array)


def shardings(tree, mesh):
  """The NamedSharding of every leaf, by its suffix.

  Any tree with suffixed leaves somewhere in it will do: params, moments, router state, averages.
  A leaf without a suffix (a counter, a key) and the small tables of `placement` are replicated.
  """
  return jax.tree_util.tree_map_with_path(lambda p, x: NamedSharding(mesh, _spec(p, x, mesh)), tree)


def placed(tree, mesh):
  """The shapes of a tree, with their shardings."""
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  return jax.tree.map(place, tree, shardings(tree, mesh))


def uncut(tree, mesh) -> list[str]:
  """One line for every dimension that its mesh axes do not divide, and that stays whole."""
  lines = []

  def one(path, leaf):
    ideal = _spec(path, jax.ShapeDtypeStruct((mesh.size,) * len(leaf.shape), leaf.dtype), mesh)
    for size, on, wanted in zip(leaf.shape, _spec(path, leaf, mesh), ideal, strict=False):
      if wanted and not on:
        over = (wanted,) if isinstance(wanted, str) else wanted
        over = ",".join(f"{axis}:{mesh.shape[axis]}" for axis in over)
        lines.append(f"{'/'.join(_names(path))}: {size} is not divided by {over} and stays whole")

  jax.tree_util.tree_map_with_path(one, tree)
  return lines


def _names(path):
  return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path)


def _spec(path, leaf, mesh) -> P:
  names = _names(path)
  if "placement" in names or not re.search("_[A-Z]+$", names[-1]):
    return P()
  return axes.spec(names[-1], leaf.shape, axes.roles()[axes.role(names)], mesh)
