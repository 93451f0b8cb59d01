"""The machine a program is traced for: that of the context mesh, which in ahead-of-time compilation
is not the machine that compiles."""

import jax


def platform() -> str:
  """'cpu', 'gpu' or 'tpu'.

  >>> platform() in ("cpu", "gpu", "tpu")
  True
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  name = jax.default_backend() if device is None else device.platform
  return "gpu" if name in ("cuda", "rocm") else name


def kind() -> str:
  """The model of its devices as JAX names it: 'cpu', 'NVIDIA H200', 'TPU v5', ..."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.devices()[0].device_kind if device is None else device.device_kind


def devices() -> int:
  """How many devices the context mesh has; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size


def is_cut() -> bool:
  """Whether the compiler may cut arrays here over several devices; within shard_map it may not.

  >>> is_cut()
  False
  """
  mesh = jax.sharding.get_abstract_mesh()
  manual = jax.sharding.AxisType.Manual
  sizes = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
  return any(size > 1 and axis_type != manual for axis_type, size in sizes)


def open_axes() -> tuple[str, ...]:
  """The axes of the context mesh that no shard_map around this code has taken.

  >>> open_axes()
  ()
  """
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)


def cores() -> int:
  """The multiprocessors of a GPU; 1 elsewhere.

  >>> cores()
  1
  """
  if platform() != "gpu":
    return 1
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.devices()[0].core_count if device is None else device.num_cores
