"""JAX's interpreter of Mosaic GPU kernels, with the steps that it lacks in jax 0.10.2.

It runs the blocks and warpgroups of a kernel as threads with real barriers, so that a wait which
nobody ends, a copy to the wrong place and a result that nobody wrote are seen. It is not a public
part of JAX; a test that needs it is skipped where it has changed.
"""

import contextlib
import functools
import inspect
from unittest import mock

import jax
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu


@contextlib.contextmanager
def on_cpu():
  """Kernels traced in this context run on the CPU; what nobody wrote is NaN, read or not."""
  base = "jax._src.pallas.mosaic_gpu"
  params = pytest.importorskip(f"{base}.interpret.params", exc_type=ImportError)
  callbacks = pytest.importorskip(f"{base}.interpret.gpu_callbacks", exc_type=ImportError)
  settings = params.InterpretGPUParams(out_of_bounds_reads="uninitialized")
  _lay_out_for_nobody()
  with contextlib.ExitStack() as stack:
    for name, function in [
      ("wgmma", functools.partial(_wgmma, callbacks)),
      ("_get", functools.partial(_moved, callbacks._get)),
      ("_swap", functools.partial(_moved, callbacks._swap)),
      ("_validate_transforms", lambda views: None),  # where a slice starts may be traced
    ]:
      stack.enter_context(mock.patch.object(callbacks, name, function))
    stack.enter_context(mock.patch.object(plgpu, "load", lambda ref, where, **how: ref[where]))
    stack.enter_context(params.force_gpu_interpret_mode(settings))
    try:
      yield
    finally:
      callbacks.reset_gpu_interpret_mode_state()


@functools.cache
def _lay_out_for_nobody():
  """A layout says which thread holds a number: on a CPU it says nothing."""
  from jax._src.pallas.mosaic_gpu import core
  from jax.interpreters import mlir

  mlir.register_lowering(core.layout_cast_p, lambda ctx, x, **_: [x], platform="cpu")


def _straight(views):
  """(views without transpositions, whether there was one)."""
  from jax._src.state.types import TransposeTransform

  kept = tuple(view for view in views if not isinstance(view, TransposeTransform))
  return kept, len(kept) < len(views)


def _moved(move, *args, **how):
  """A read or a write (`move`), maybe of a transposed view."""
  given = inspect.signature(move).bind(*args, **how)
  given.arguments["transforms"], turned = _straight(given.arguments["transforms"])
  if turned and "val" in given.arguments:
    given.arguments["val"] = given.arguments["val"].T
  token, value = move(*given.args, **given.kwargs)
  return token, value.T if turned else value


def _wgmma(callbacks, *, token, device_id, thread_id, acc_dtype, source_info, **refs):
  """acc += a b, of which either may be a transposed view, and a may be in registers."""
  from jax._src.pallas.mosaic.interpret import utils

  memory = callbacks._get_shared_memory()
  thread = memory.get_global_thread_id(int(device_id), int(thread_id))
  where = tuple(int(x) for x in refs["grid_point_coords"])
  told = utils.GPULoggingInfo(
    device_id=int(device_id), grid_point_coords=where, thread_id=int(thread_id),
    source_info=source_info,
  )  # fmt: skip

  def look(name):
    key = refs[f"{name}_allocation_key_as_array"]
    if key.ndim == 2:
      return None, None, np.asarray(key)
    key = callbacks.HostAllocationKey.from_array(key)
    kept, turned = _straight(callbacks._remove_noop_transforms(refs[f"{name}_transforms"]))
    place = utils.to_range(jax.tree.map(int, kept))
    value, _, _ = memory.get_buffer_content(key, place, thread, logging_info=told)
    return key, place, value.T if turned else value

  key, place, acc = look("acc")
  acc = acc + np.matmul(look("a")[2].astype(acc_dtype), look("b")[2].astype(acc_dtype))
  memory.store_buffer_content(key, place, acc, thread, logging_info=told)
  return token
