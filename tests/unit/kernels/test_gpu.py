"""The GPU kernels of the grouped matmul against float64: interpreted on a CPU, or run on a GPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mosaic_interpreter
import numpy as np
import pytest

from pallas_kernels import target
from pallas_kernels.grouped_matmul import cases, mosaic_gpu, quantised, triton

TINY = triton.Config(16, 16, 16, 4, 2, 2)
PARTS = ("forward", "d_lhs", "d_rhs")
BFLOAT16 = jnp.dtype(jnp.bfloat16)


def larger(case):
  """The same load, seven rows for one, and widths of several blocks and a part."""
  load = tuple(7 * s for s in case.load) if isinstance(case.load, tuple) else case.load
  return cases.Case(7 * case.M, 20, 37, case.E, load)


@functools.cache
def interpreted(part):
  return jax.jit(functools.partial(getattr(triton, part), config=TINY, interpret=True))


def drawn(case, dtype=np.float32):
  """x, w and g, with NaN in the rows of no expert."""
  rng, used = np.random.default_rng(0), cases.sizes(case).sum()
  x_MD, w_EDF, g_MF = (
    rng.normal(size=s).astype(dtype)
    for s in [(case.M, case.D), (case.E, case.D, case.F), (case.M, case.F)]
  )
  x_MD[used:] = np.nan
  g_MF[used:] = np.nan
  return x_MD, w_EDF, g_MF


def defined(part, a, b, size_E):
  """The part in float64, as loops over experts."""
  a, b, last_E = np.asarray(a, np.float64), np.asarray(b, np.float64), np.cumsum(size_E)
  own = [slice(last - size, last) for last, size in zip(last_E, size_E, strict=True)]
  if part == "d_rhs":
    return np.stack([a[rows].T @ b[rows] for rows in own])
  w = b if part == "forward" else b.swapaxes(1, 2)
  y = np.zeros((len(a), w.shape[2]))
  for e, rows in enumerate(own):
    y[rows] = a[rows] @ w[e]
  return y


def arguments(part, x_MD, w_EDF, g_MF):
  return {"forward": (x_MD, w_EDF), "d_lhs": (g_MF, w_EDF), "d_rhs": (x_MD, g_MF)}[part]


def check(function, part, case, dtype=np.float32, close=1e-5):
  args = arguments(part, *drawn(case, dtype))
  got = function(*(jnp.asarray(a) for a in args), jnp.asarray(cases.sizes(case)))
  assert got.dtype == dtype
  want = defined(part, *args, cases.sizes(case))
  scale = np.abs(want).max() or 1
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=close * scale)
  if part != "d_rhs":
    np.testing.assert_array_equal(got[cases.sizes(case).sum() :], 0)


@pytest.mark.parametrize("part", PARTS)
def test_triton_is_the_definition_on_every_load(part):
  for case in cases.TEST.values():
    check(interpreted(part), part, larger(case))


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_triton_with_any_experts_empty(part):
  for rows in itertools.product((0, 5), repeat=8):
    check(interpreted(part), part, cases.Case(43, 18, 17, 8, rows))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", PARTS)
def test_triton_with_every_configuration_that_a_tuner_tries(part, dtype):
  case = cases.Case(300, 70, 270, 3, (130, 0, 131))
  close = 1e-5 if dtype == "float32" else 1e-2
  for mean in (8, 512):
    for config in triton.candidates(part, mean, jnp.dtype(dtype).itemsize):
      run = functools.partial(getattr(triton, part), config=config, interpret=True)
      check(jax.jit(run), part, case, jnp.dtype(dtype), close)


SLOW = pytest.mark.slow
NARROW = [("int8", "float"), ("float8_e4m3fn", "narrow")]
NARROW += [pytest.param(*c, marks=SLOW) for c in [("int8", "narrow"), ("float8_e4m3fn", "float")]]


@pytest.mark.parametrize("dtype, rows", NARROW)
def test_triton_multiplies_quantised_weights(dtype, rows):
  case = larger(cases.TEST["rows_left_over"])._replace(D=48)
  x_MD, w_EDF, _ = drawn(case)
  x_MD, w = jnp.nan_to_num(x_MD), quantised.quantise(jnp.asarray(w_EDF), dtype, blocks=3)
  x = quantised.quantise(x_MD, dtype) if rows == "narrow" else x_MD
  run = jax.jit(functools.partial(triton.quantised, config=TINY, interpret=True))
  got = run(x, w, jnp.asarray(cases.sizes(case)))
  x_MD = quantised.wide(x) if rows == "narrow" else x
  want = defined("forward", x_MD, quantised.wide(w), cases.sizes(case))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_what_triton_does_not_do_is_said_while_tracing():
  shape = jax.ShapeDtypeStruct
  size_E, x = shape((2,), jnp.int32), shape((8, 32), jnp.bfloat16)
  run = functools.partial(jax.eval_shape, triton.forward)
  with pytest.raises(NotImplementedError, match="no kernel for bfloat16 rows with float32 weights"):
    run(x, shape((2, 32, 8), jnp.float32), size_E)
  with pytest.raises(NotImplementedError, match="no kernel for int8 rows with int8 weights"):
    run(shape((8, 32), jnp.int8), shape((2, 32, 8), jnp.int8), size_E)
  many = quantised.Quantised(shape((256, 8192, 1024), jnp.int8), shape((256, 1, 1024), jnp.float32))
  with pytest.raises(NotImplementedError, match="2147483648 numbers of one byte are too many"):
    jax.eval_shape(triton.quantised, shape((8, 8192), jnp.bfloat16), many, shape((256,), jnp.int32))
  odd = quantised.Quantised(shape((2, 60, 8), jnp.int8), shape((2, 3, 8), jnp.float32))
  with pytest.raises(NotImplementedError, match="blocks of 20 inputs are no multiples of 32"):
    jax.eval_shape(triton.quantised, shape((8, 60), jnp.bfloat16), odd, size_E)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_mosaic_is_the_definition(part, monkeypatch):
  """Experts without rows, with fewer than a tile and with more; rows that end within a tile."""
  monkeypatch.setattr(target, "cores", lambda: 2)
  case = cases.Case(160, 128, 128, 3, (70, 0, 65))
  config = mosaic_gpu.Config(128 if part == "d_rhs" else 64, 128, 2)
  with mosaic_interpreter.on_cpu():
    run = jax.jit(functools.partial(getattr(mosaic_gpu, part), config=config))
    check(run, part, case, BFLOAT16, 1e-2)


def test_what_mosaic_does_not_do_is_said_while_tracing():
  shape = jax.ShapeDtypeStruct
  run, size_E = functools.partial(jax.eval_shape, mosaic_gpu.forward), shape((2,), jnp.int32)
  for dtype, D, F, match in [
    ("float32", 64, 64, "bfloat16 or float16 only, not float32 and float32"),
    ("bfloat16", 60, 128, "60 inputs are no multiple of 64"),
    ("bfloat16", 64, 60, "60 columns are no multiple of 128"),
  ]:
    with pytest.raises(NotImplementedError, match=match):
      run(shape((8, D), dtype), shape((2, D, F), dtype), size_E)
  device = jax.sharding.AbstractDevice("NVIDIA A100-SXM4-80GB", 108, "cuda")
  mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    with pytest.raises(NotImplementedError, match="written for Hopper, this is NVIDIA A100"):
      run(shape((8, 64), jnp.bfloat16), shape((2, 64, 64), jnp.bfloat16), size_E)


@pytest.mark.parametrize("mean", [8, 64, 512])
@pytest.mark.parametrize("part", PARTS)
def test_every_configuration_fits_shared_memory_and_registers(part, mean):
  for out in (128, 768, 7168):
    for config in mosaic_gpu.candidates(part, mean, out):
      rows, cols = config.half()
      assert config.shared() <= mosaic_gpu.SHARED
      assert rows % 64 == 0 and cols % 64 == 0
      assert rows * cols // 128 <= 128  # registers of a thread for sums, of 232


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", "mosaic_gpu"])
@pytest.mark.parametrize("part", PARTS)
def test_on_a_gpu(part, name):
  if jax.default_backend() != "gpu":
    pytest.skip("needs a GPU")
  module = {"triton": triton, "mosaic_gpu": mosaic_gpu}[name]
  for load in ("even", "zipf", "one_hot", "half", (0, 1, 700, 0, 129, 128, 1, 65)):
    check(jax.jit(getattr(module, part)), part, cases.Case(1030, 256, 384, 8, load), BFLOAT16, 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", "mosaic_gpu"])
@pytest.mark.parametrize("part", PARTS)
def test_on_a_gpu_with_any_experts_empty(part, name):
  if jax.default_backend() != "gpu":
    pytest.skip("needs a GPU")
  run = jax.jit(getattr({"triton": triton, "mosaic_gpu": mosaic_gpu}[name], part))
  for rows in itertools.product((0, 37), repeat=8):
    check(run, part, cases.Case(300, 128, 128, 8, rows), BFLOAT16, 2e-2)
