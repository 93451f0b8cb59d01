"""The peak rate of a device: the data sheet's on accelerators, measured on a CPU.

Rates are dense, of one JAX device, for matmuls in a dtype as JAX runs them by default:
float32 goes through TF32 on a GPU and through bfloat16 passes on a TPU.
Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, 7x); NVIDIA's data sheets, half of what they
give with sparsity.
"""

import functools
import time

import jax
import jax.numpy as jnp

DATA_SHEET = {  # start of device_kind -> TFLOP/s in (bfloat16, float32)
  "TPU v4": (275.0, 275.0),
  "TPU v5 lite": (197.0, 197.0),
  "TPU v5e": (197.0, 197.0),
  "TPU v5p": (459.0, 459.0),
  "TPU v5": (459.0, 459.0),
  "TPU v6 lite": (918.0, 918.0),
  "TPU v6e": (918.0, 918.0),
  "TPU7x": (1153.5, 1153.5),  # a chip of 2307 is two devices
  "NVIDIA A100": (312.0, 156.0),
  "NVIDIA H100 PCIe": (756.0, 378.0),
  "NVIDIA H100 NVL": (835.5, 417.5),
  "NVIDIA H100": (989.4, 494.7),
  "NVIDIA H200 NVL": (835.5, 417.5),
  "NVIDIA H200": (989.4, 494.7),
  "NVIDIA GH200": (989.4, 494.7),
  "NVIDIA B200": (2250.0, 1125.0),
}


def peak(dtype="float32", devices=None) -> tuple[str, float]:
  """(how the peak is called, FLOP/s) of all devices of a run: given, of the mesh, or all.

  A device without a data sheet here is measured; the CPU devices of a process share its cores.
  """
  mesh = jax.sharding.get_mesh()
  devices = list(jax.devices() if mesh.empty else mesh.devices.flat) if devices is None else devices
  kind, is_cpu = devices[0].device_kind, devices[0].platform == "cpu"
  name, one = f"{kind} {dtype} data sheet", data_sheet(kind, dtype)
  if one is None:
    name, one = f"{kind} {dtype} matmul, measured", measured(jnp.dtype(dtype).name)
  count = len({device.process_index for device in devices}) if is_cpu else len(devices)
  return (name if count == 1 else f"{count} x {name}"), count * one


def data_sheet(kind: str, dtype) -> float | None:
  """FLOP/s of a device kind, if it is known.

  >>> data_sheet("NVIDIA H200", "bfloat16"), data_sheet("cpu", "float32")
  (989400000000000.0, None)
  """
  found = [name for name in sorted(DATA_SHEET, key=len) if kind.startswith(name)]
  return 1e12 * DATA_SHEET[found[-1]][jnp.dtype(dtype).itemsize > 2] if found else None


@functools.cache
def measured(dtype: str, size: int = 1024, seconds: float = 0.2) -> float:
  """The best rate of a square matmul on this machine's first device, once per process."""
  alone = {"axis_types": (jax.sharding.AxisType.Auto,), "devices": jax.local_devices()[:1]}
  with jax.set_mesh(jax.make_mesh((1,), ("data",), **alone)):  # not on all of the mesh in context
    x_DD = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x_DD: x_DD @ x_DD).lower(x_DD).compile()
    product(x_DD).block_until_ready()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
      begin = time.perf_counter()
      product(x_DD).block_until_ready()
      best = min(best, time.perf_counter() - begin)
  return 2.0 * size**3 / best
