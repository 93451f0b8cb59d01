"""Settings of the process that must be made before jax is imported: an option of the runner."""

import ctypes
import os
import sys

TRIM, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8  # of glibc's malloc.h
ONE_CORE = "--xla_cpu_multi_thread_eigen=false"


def prepare(allocator: bool = True, devices: int = 1) -> None:
  """Keeps freed memory for the next step instead of giving it back; makes virtual CPU devices.

  XLA allocates every temporary afresh, and by default glibc maps and unmaps the large ones: each
  step then pays a page fault for every 4 KiB of them.
  """
  if allocator and sys.platform == "linux":
    try:
      mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
      mallopt = None  # another C library: its allocator is left as it is
    if mallopt is not None:
      for what, value in (
        (MMAP_THRESHOLD, 1 << 30),
        (TRIM, (1 << 31) - 1),
        (TOP_PAD, 256 << 20),
        (ARENA_MAX, 1),
        (MMAP_MAX, 0),
      ):
        mallopt(what, value)
  if devices > 1:
    os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
    if devices >= (os.cpu_count() or 1):  # each has a core: none shares its matmuls with others
      os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_CORE}".strip()
