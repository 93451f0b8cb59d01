"""Where kernels for Hopper run."""

import contextlib

import jax
import mosaic_interpreter
import pytest

from pallas_kernels import target


@pytest.fixture(
  params=[
    pytest.param("interpreter", marks=pytest.mark.slow),
    pytest.param("gpu", marks=pytest.mark.gpu),
  ]
)
def hopper(request, monkeypatch):
  """A context to trace a kernel of Mosaic GPU in: of JAX's interpreter with two cores, or a GPU."""
  if request.param == "interpreter":
    monkeypatch.setattr(target, "cores", lambda: 2)
    return mosaic_interpreter.on_cpu
  if jax.default_backend() != "gpu":
    pytest.skip("needs a GPU")
  return contextlib.nullcontext
