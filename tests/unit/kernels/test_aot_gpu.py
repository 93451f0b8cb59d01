"""The GPU kernels go through the compiler and assembler of an H200, at shapes of real models."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot_gpu, choose
from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul import cases, mosaic_gpu, quantised, triton

pytestmark = pytest.mark.aot
PARTS = ("forward", "d_lhs", "d_rhs")
UNIQUE = 16392  # tokens of no other test; Mosaic GPU tells of a kernel when it is new to a process
IMPLEMENTATIONS = {"triton": triton, "mosaic_gpu": mosaic_gpu}


@pytest.fixture(autouse=True, scope="module")
def compiler():
  if aot_gpu.missing():
    pytest.skip(aot_gpu.missing())


def shapes(part, case, dtype=jnp.bfloat16):
  x, w, g = (
    jax.ShapeDtypeStruct(s, dtype)
    for s in [(case.M, case.D), (case.E, case.D, case.F), (case.M, case.F)]
  )
  pair = {"forward": (x, w), "d_lhs": (g, w), "d_rhs": (x, g)}[part]
  return *pair, jax.ShapeDtypeStruct((case.E,), jnp.int32)


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_pass_compiles_at_the_shapes_of_a_model(name, part, model, down):
  args = shapes(part, cases.of_model(model, down=down))
  program = aot_gpu.compiled(getattr(IMPLEMENTATIONS[name], part), *args)
  assert f"grouped_matmul_{part}" in program.as_text()
  assert program.memory_analysis().temp_size_in_bytes < 2**20  # the map of tiles, nothing else


@pytest.mark.parametrize("name, part", [(n, p) for n in IMPLEMENTATIONS for p in PARTS])
def test_kernels_multiply_by_tensor_cores_and_spill_nothing(name, part):
  function = getattr(IMPLEMENTATIONS[name], part)
  case = cases.of_model("qwen3_30b_a3b", UNIQUE)
  found = aot_gpu.kernels(function, *shapes(part, case))
  (kernel,) = (k for k in found if k.name.startswith(f"grouped_matmul_{part}"))
  assert kernel.wgmma > 0 and kernel.spilled == 0
  assert kernel.registers * kernel.threads <= 65536 and kernel.shared <= mosaic_gpu.SHARED


def test_a_kernel_of_mosaic_that_is_not_told_of_again_is_missed():
  args = shapes("forward", cases.of_model("qwen3_30b_a3b", 1000))
  assert len(aot_gpu.kernels(mosaic_gpu.forward, *args)) > 1
  with pytest.raises(RuntimeError, match="1 of 1 Mosaic GPU kernels were compiled .* before"):
    aot_gpu.kernels(mosaic_gpu.forward, *args)


@pytest.mark.parametrize("rows", ["bfloat16", "narrow"])
@pytest.mark.parametrize("blocks", [1, 16])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_quantised_weights_compile(dtype, blocks, rows):
  case = cases.of_model("qwen3_30b_a3b")
  shape = jax.ShapeDtypeStruct
  w = quantised.Quantised(
    shape((case.E, case.D, case.F), dtype), shape((case.E, blocks, case.F), jnp.float32)
  )
  x = shape((case.M, case.D), jnp.bfloat16)
  if rows == "narrow":
    x = quantised.Quantised(shape((case.M, case.D), dtype), shape((case.M, 1), jnp.float32))
  program = aot_gpu.compiled(triton.quantised, x, w, shape((case.E,), jnp.int32))
  assert "grouped_matmul_forward" in program.as_text()


def test_float32_compiles_and_a_tile_that_is_too_large_does_not():
  args = shapes("forward", cases.Case(1000, 200, 120, 8), jnp.float32)  # nothing divides anything
  assert "triton" in aot_gpu.compiled(triton.forward, *args).as_text()
  huge = functools.partial(triton.forward, config=triton.Config(256, 256, 128, 8, 5))
  with pytest.raises(Exception, match="[Ss]hared memory"):
    aot_gpu.compiled(huge, *args)


def test_a_program_for_an_h200_has_the_kernels_that_were_chosen_for_it():
  def grad(x_MD, w_EDF, size_E):
    return jax.grad(lambda x, w: op.grouped_matmul(x, w, size_E).sum(), (0, 1))(x_MD, w_EDF)

  text = aot_gpu.compiled(grad, *shapes("forward", cases.of_model("olmoe_1b_7b"))).as_text()
  with jax.sharding.use_abstract_mesh(aot_gpu.mesh().abstract_mesh):
    for part in ("d_lhs", "d_rhs"):  # a sum has a gradient without the forward pass
      shape = {"M": 131072, "D": 2048, "F": 1024, "E": 64}
      first = choose.choose("grouped_matmul", part, shape, "bfloat16")[0]
      assert first in IMPLEMENTATIONS and f"grouped_matmul_{part}" in text
  assert "ragged-dot" not in text
