"""8-bit weights by Hopper's kernels: interpreted against float64, refused, compiled for an H200."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot_gpu
from pallas_kernels import grouped_matmul as op
from pallas_kernels import mosaic_tiles as tiles
from pallas_kernels.grouped_matmul import cases, mosaic_gpu_narrow, quantised, ref, triton, xla
from pallas_kernels.mosaic_tiles import Config

AOT = pytest.mark.skipif(aot_gpu.missing() is not None, reason=str(aot_gpu.missing()))
SHAPE = jax.ShapeDtypeStruct
H200 = jax.sharding.AbstractMesh(
  (1,), ("data",), abstract_device=jax.sharding.AbstractDevice("NVIDIA H200", 132, "cuda")
)


def drawn(dtype, rows, scales, size_E, seed):
  """(x, the same with NaN in the rows of no expert, w) of 256 inputs and 128 columns."""
  rng, used = np.random.default_rng(seed), int(size_E.sum())
  x_MD = jnp.asarray(rng.normal(size=(160, 256)), jnp.float32)
  w_EDF = jnp.asarray(rng.normal(size=(len(size_E), 256, 128)), jnp.float32)
  w = quantised.quantise(w_EDF, dtype, scales, turned=True)
  if rows != "narrow":
    x_MD = x_MD.astype(rows)
    return x_MD, x_MD.at[used:].set(jnp.nan), w
  x = quantised.quantise(x_MD, dtype)
  values = x.values if dtype == "int8" else x.values.at[used:].set(jnp.nan)
  return x, quantised.Quantised(values, x.scale.at[used:].set(jnp.nan)), w


def defined(x, w, size_E):
  """float64, as a loop over experts."""
  x_MD = quantised.wide(x) if isinstance(x, quantised.Quantised) else x
  x_MD, w_EDF = np.asarray(x_MD, np.float64), np.asarray(quantised.wide(w), np.float64)
  y_MF, last_E = np.zeros((len(x_MD), w_EDF.shape[2])), np.cumsum(size_E)
  for e, (last, size) in enumerate(zip(last_E, size_E, strict=True)):
    y_MF[last - size : last] = x_MD[last - size : last] @ w_EDF[e]
  return y_MF


@pytest.mark.parametrize(
  "dtype, rows, scales, config",
  [
    ("int8", "bfloat16", 1, Config(128, 32, 2)),
    ("int8", "float16", 2, Config(128, 64, 2)),
    ("float8_e4m3fn", "bfloat16", 2, Config(128, 128, 2, depth=128)),
    ("int8", "narrow", 1, Config(64, 128, 2, depth=128)),
    ("int8", "narrow", 2, Config(128, 128, 3, depth=128)),
    ("float8_e5m2", "narrow", 1, Config(64, 128, 2, depth=128)),
    ("float8_e4m3fn", "narrow", 2, Config(128, 128, 2, depth=128)),
  ],
)
def test_it_is_the_definition(dtype, rows, scales, config, hopper):
  """Experts without rows, with a row, with fewer than a tile and with more; rows of no expert."""
  for seed, size_E in enumerate(np.array([[70, 0, 65], [0, 1, 0]])):
    x, dirty, w = drawn(dtype, rows, scales, size_E, seed)
    with hopper():
      run = jax.jit(functools.partial(mosaic_gpu_narrow.quantised, config=config))
      got = run(dirty, w, jnp.asarray(size_E))
    want = defined(x, w, size_E)
    assert got.dtype == (jnp.float32 if rows == "narrow" else rows)
    close = 1e-6 if rows == "narrow" else 5e-3  # the result alone is rounded to 16 bits
    if dtype.startswith("float8") and jax.default_backend() == "gpu":
      close = 5e-3  # tensor cores keep 14 bits of a sum of such products
    np.testing.assert_allclose(
      np.asarray(got, np.float64), want, rtol=0, atol=close * np.abs(want).max()
    )
    np.testing.assert_array_equal(got[size_E.sum() :], 0)


def test_turned_weights_are_the_same_numbers_and_every_implementation_reads_them():
  rng, size_E = np.random.default_rng(0), jnp.array([5, 0, 9])
  x_MD = jnp.asarray(rng.normal(size=(20, 48)), jnp.float32)
  w_EDF = jnp.asarray(rng.normal(size=(3, 48, 17)), jnp.float32)
  w, turned = (quantised.quantise(w_EDF, blocks=3, turned=t) for t in (False, True))
  assert turned.values.shape == (3, 17, 48) and turned.shape == w.shape == (3, 48, 17)
  np.testing.assert_array_equal(quantised.wide(turned), quantised.wide(w))
  want = ref.grouped_matmul(x_MD, quantised.wide(w), size_E)
  tiny = functools.partial(
    triton.quantised, config=triton.Config(16, 16, 16, 4, 2, 2), interpret=True
  )
  for run in (tiny, xla.quantised, op.grouped_matmul):
    np.testing.assert_allclose(jax.jit(run)(x_MD, turned, size_E), want, rtol=0, atol=1e-4)
  with pytest.raises(ValueError, match=r"turn weights \[E, D, F\] only"):
    quantised.quantise(x_MD, turned=True)


def arguments(case, dtype, rows, scales, turned=True):
  """Of the pass, without numbers."""
  lies = (case.E, case.F, case.D) if turned else (case.E, case.D, case.F)
  w = quantised.Quantised(SHAPE(lies, dtype), SHAPE((case.E, scales, case.F), jnp.float32), turned)
  x = SHAPE((case.M, case.D), dtype if rows == "narrow" else rows)
  if rows == "narrow":
    x = quantised.Quantised(x, SHAPE((case.M, 1), jnp.float32))
  return x, w, SHAPE((case.E,), jnp.int32)


@pytest.mark.parametrize(
  "case, dtype, rows, scales, turned, match",
  [
    (cases.Case(64, 128, 128, 2), "int8", "bfloat16", 1, False, "quantise them with turned=True"),
    (cases.Case(64, 128, 128, 2), "int8", "float32", 1, True, "bfloat16 or float16 only"),
    (cases.Case(64, 192, 128, 2), "int8", "narrow", 1, True, "192 inputs are no multiple of 128"),
    (cases.Case(64, 256, 128, 2), "int8", "narrow", 4, True, "64 inputs of a scale are no"),
    (
      cases.Case(64, 128, 192, 2),
      "int8",
      "bfloat16",
      1,
      True,
      "192 columns are no multiple of 128",
    ),
    (cases.Case(64, 128, 128, 2), "uint8", "bfloat16", 1, True, "no kernel for .* uint8 weights"),
  ],
)
def test_what_it_does_not_do_is_said_while_tracing_and_triton_does_it(
  case, dtype, rows, scales, turned, match
):
  args = arguments(case, dtype, rows, scales, turned)
  with jax.sharding.use_abstract_mesh(H200):
    with pytest.raises(NotImplementedError, match=match):
      jax.eval_shape(mosaic_gpu_narrow.quantised, *args)
    if dtype == "int8":  # the other is done by no kernel
      program = str(jax.make_jaxpr(op.grouped_matmul)(*args))
      assert "grouped_matmul_quantised" not in program and "grouped_matmul_forward" in program


def test_a_program_for_an_h200_has_this_kernel():
  with jax.sharding.use_abstract_mesh(H200):
    for rows in ("bfloat16", "narrow"):
      args = arguments(cases.Case(64, 128, 128, 2), "int8", rows, 1)
      assert "grouped_matmul_quantised" in str(jax.make_jaxpr(op.grouped_matmul)(*args))


@pytest.mark.parametrize("mean", [1, 8, 24, 48, 96, 192, 512])
@pytest.mark.parametrize("widened", [True, False])
def test_every_tile_fits_shared_memory_and_registers(widened, mean):
  for summed, out in [(2048, 256), (2048, 128), (128, 256)]:
    c = mosaic_gpu_narrow.heuristic(widened, summed, 2048, mean, out)
    rows, cols = c.half()
    room = rows * cols // 128 * (1 if summed == 2048 else 2)  # registers of a thread for sums
    assert rows % 64 == 0 and cols % 8 == 0 and room <= 128
    one = tiles.Operand("a", True, "int8", "bfloat16" if widened else None)
    operands = one, tiles.Operand("b", True, "bfloat16" if widened else "int8")
    operands += (tiles.Operand("a", True, "float32", scale=True),)
    assert tiles.shared(c, operands, turned=widened) <= tiles.SHARED


@pytest.mark.aot
@AOT
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("model", cases.MODELS)
def test_it_compiles_at_the_shapes_of_a_model(model, down):
  for rows in ("bfloat16", "narrow"):
    case = cases.of_model(model, down=down)
    args = arguments(case, "float8_e4m3fn", rows, 1 if down else case.D // 128)
    program = aot_gpu.compiled(mosaic_gpu_narrow.quantised, *args)
    assert "grouped_matmul_quantised" in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 2**23  # the map of tiles, padded scales


@pytest.mark.aot
@AOT
@pytest.mark.parametrize("tokens", [16392, 256])  # of no other test, see aot_gpu.kernels
@pytest.mark.parametrize("scales", [1, 16])
@pytest.mark.parametrize("rows", ["bfloat16", "float16", "narrow"])
@pytest.mark.parametrize("dtype", mosaic_gpu_narrow.NARROW)
def test_it_multiplies_by_tensor_cores_and_spills_nothing(dtype, rows, scales, tokens):
  args = arguments(cases.of_model("qwen3_30b_a3b", tokens), dtype, rows, scales)
  found = aot_gpu.kernels(mosaic_gpu_narrow.quantised, *args)
  (kernel,) = (k for k in found if k.name.startswith("grouped_matmul_quantised"))
  assert kernel.wgmma > 0 and kernel.spilled == 0
  assert kernel.registers * kernel.threads <= 65536 and kernel.shared <= tiles.SHARED
