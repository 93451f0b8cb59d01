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


def devices() -> int:
  """How many devices the context mesh has; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size
