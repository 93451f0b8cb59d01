"""The expert FFN by Hopper's kernels: interpreted against float64, refused, compiled for one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_expert_ffn_gpu import outcome_of

from pallas_kernels import aot_gpu, expert_ffn
from pallas_kernels import mosaic_tiles as tiles
from pallas_kernels.expert_ffn import cases, gpu_aot, mosaic_gpu, ref
from pallas_kernels.grouped_matmul.cases import MODELS
from pallas_kernels.mosaic_tiles import Config

AOT = pytest.mark.skipif(aot_gpu.missing() is not None, reason=str(aot_gpu.missing()))
WIDE = [name for name, model in MODELS.items() if model.F >= mosaic_gpu.NARROW]
H200 = jax.sharding.AbstractMesh(
  (1,), ("data",), abstract_device=jax.sharding.AbstractDevice("NVIDIA H200", 132, "cuda")
)
CONFIGS = {
  "up": Config(64, 128, 2),
  "d_act": Config(128, 128, 2),
  "d_rows": Config(64, 128, 2),
}


def drawn(case, seed):
  """Real arguments in float64 that 16 bits hold, and the tables."""
  rng, (N, K, E, D, F) = np.random.default_rng(seed), case[1:]
  shapes = [(N, D), (E, D, F), (E, D, F), (E, F, D), (N * K,)]
  scales = 1.0, D**-0.5, D**-0.5, F**-0.5, 1.0
  real = [c * rng.normal(size=s) for c, s in zip(scales, shapes, strict=True)]
  return [a.astype(jnp.bfloat16).astype(np.float64) for a in real], cases.rows(case)


def test_it_is_the_definition_forward_and_backward(hopper, monkeypatch):
  """Experts without rows, with few and with more than a tile; rows of no expert, which are NaN."""
  monkeypatch.setattr(mosaic_gpu, "NARROW", 0)
  size = {"N": 85, "K": 2, "E": 3, "D": 128, "F": 256}
  spread = cases.Case(lambda n: (n % 3, np.where(n % 4 == 0, -1, 2)), **size)
  holes = cases.Case(lambda n: (0 * n, np.where(n % 17 == 0, 2, -1)), **size)
  got_of = outcome_of(functools.partial(mosaic_gpu.swiglu, configs=CONFIGS))
  want_of = outcome_of(ref.swiglu)
  for seed, case in enumerate((spread, holes)):
    real, (token_M, row_NK, size_E) = drawn(case, seed)
    used = int(size_E.sum())
    given = [jnp.asarray(a, jnp.bfloat16) for a in real[:4]]
    given.append(jnp.asarray(real[4], jnp.float32).at[used:].set(jnp.nan))
    index = [jnp.asarray(np.where(np.arange(len(token_M)) < used, token_M, 0)), row_NK, size_E]
    with hopper():
      got = got_of(given, [*map(jnp.asarray, index)])
    with jax.enable_x64(True):
      want = jax.tree.map(np.asarray, want_of([*map(jnp.asarray, real)], [token_M, row_NK, size_E]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      close = 3e-2 * np.abs(b).max()
      np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=close)


def arguments(N, D, F, E=4, dtype=jnp.bfloat16):
  """Of the whole, without numbers."""
  shape, M = jax.ShapeDtypeStruct, 2 * N
  weights = shape((E, D, F), dtype), shape((E, D, F), dtype), shape((E, F, D), dtype)
  tables = shape((M,), jnp.int32), shape((N, 2), jnp.int32), shape((E,), jnp.int32)
  return shape((N, D), dtype), *weights, shape((M,), jnp.float32), *tables


def test_a_program_for_an_h200_has_these_kernels_and_else_those_of_triton():
  with jax.sharding.use_abstract_mesh(H200):
    for D, F, dtype, refusal in [
      (256, 1280, "bfloat16", None),
      (256, 1280, "float32", "bfloat16 or float16 only, not float32"),
      (192, 1280, "bfloat16", "192 inputs are no multiple of 128"),
      (256, 1320, "bfloat16", "1320 columns of an expert are no multiple of 128"),
      (256, 768, "bfloat16", "rows are not sorted for F=768, less than 1280"),
    ]:
      args = arguments(64, D, F, dtype=jnp.dtype(dtype))
      program = str(
        jax.make_jaxpr(functools.partial(gpu_aot.gradients, function=expert_ffn.swiglu))(*args)
      )
      ours = [f"expert_ffn_{part}" in program for part in ("d_act", "d_rows")]
      assert all(ours) and ("expert_ffn_d_up" in program) == (refusal is not None)
      if refusal:
        with pytest.raises(NotImplementedError, match=refusal):
          jax.eval_shape(mosaic_gpu.swiglu, *args)


@pytest.mark.parametrize("mean", [8, 96, 512])
def test_every_tile_fits_shared_memory_and_registers(mean):
  for part, sums, beside in [("up", 2, 0), ("d_act", 1, 2), ("d_rows", 1, 0)]:
    c = mosaic_gpu.heuristic(part, mean, 2048)
    (rows, cols), dtype = c.half(), jnp.bfloat16
    operands = [tiles.Operand("a", True, dtype)] + sums * [tiles.Operand("b", True, dtype)]
    kept = beside * c.rows * c.cols * 2 + sum(o.bytes(c) for o in operands)
    assert c.shared(kept) <= tiles.SHARED
    assert rows % 64 == 0 and cols % 64 == 0 and sums * rows * cols // 128 <= 128


@pytest.mark.aot
@AOT
@pytest.mark.parametrize("model", WIDE)
def test_every_kernel_compiles_for_an_h200_and_spills_nothing(model):
  run = functools.partial(gpu_aot.gradients, function=mosaic_gpu.swiglu)
  found = aot_gpu.kernels(run, *gpu_aot.arguments(model, 16392))  # kernels of no other test
  for part in mosaic_gpu.OWN:
    (kernel,) = {k for k in found if k.name == f"expert_ffn_{part}_mosaic_gpu_kernel"}
    assert kernel.wgmma > 0 and kernel.spilled == 0
    assert kernel.registers * kernel.threads <= 65536 and kernel.shared <= tiles.SHARED
  assert {k.name for k in found} >= {"grouped_matmul_forward_mosaic_gpu_kernel", "permute"}
