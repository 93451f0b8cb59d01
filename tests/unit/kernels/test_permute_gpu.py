"""Rows and tokens on GPUs against loops: interpreted, compiled for an H200, or run on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot_gpu, permute
from pallas_kernels.grouped_matmul import cases as matmuls
from pallas_kernels.permute import cases, ref, triton

PARTS = ("rows", "tokens", "d_tokens")
INTERPRETED = {
  part: jax.jit(functools.partial(getattr(triton, part), interpret=True)) for part in PARTS
}
RUN = {part: jax.jit(getattr(triton, part)) for part in PARTS}


def arguments(part, case, dtype):
  """What a part is given; NaN wherever it has nothing to read."""
  rng, (token_M, row_NK) = np.random.default_rng(0), cases.tables(case)
  M = len(token_M)
  draw = lambda *shape: rng.normal(size=shape).astype(dtype).astype(np.float64)
  x_ND, y_MD, gate_M = draw(case.N, case.D), draw(M, case.D), rng.random(M).astype(np.float32)
  y_MD[token_M < 0], gate_M[token_M < 0] = np.nan, np.nan
  x_ND[np.setdiff1d(np.arange(case.N), token_M)] = np.nan
  return {
    "rows": (x_ND, token_M),
    "tokens": (y_MD, gate_M.astype(np.float64), row_NK),
    "d_tokens": (x_ND, y_MD, gate_M.astype(np.float64), token_M),
  }[part]


def check(run, part, case, dtype="float32", close=1e-5):
  dtype = jnp.dtype(dtype)
  args = arguments(part, case, dtype)
  given = [
    a if a.dtype == np.int32 else a.astype(dtype if a.ndim > 1 else np.float32) for a in args
  ]
  got, want = run[part](*map(jnp.asarray, given)), getattr(ref, part)(*args)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == (dtype if a.ndim > 1 else np.float32)
    scale = np.abs(b).max(initial=0) or 1
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=close * scale)


@pytest.mark.parametrize("part", PARTS)
def test_triton_is_the_definition(part):
  for case in cases.TEST.values():
    check(INTERPRETED, part, case)
  check(INTERPRETED, part, cases.Case(41, 2, 1100, 0.7), "bfloat16", 1e-2)


def test_sums_need_no_gates():
  case = cases.TEST["holes"]
  y_MD, _, row_NK = arguments("tokens", case, np.float32)
  got = INTERPRETED["tokens"](jnp.asarray(y_MD, jnp.float32), None, row_NK)
  np.testing.assert_allclose(got, ref.tokens(y_MD, None, row_NK), rtol=0, atol=1e-5)


def test_what_is_not_done_is_said_while_tracing():
  shape = jax.ShapeDtypeStruct
  with pytest.raises(NotImplementedError, match=r"no kernel for rows of int8\[4, 3\]"):
    jax.eval_shape(triton.rows, shape((4, 3), jnp.int8), shape((8,), jnp.int32))


@pytest.mark.aot
@pytest.mark.skipif(aot_gpu.missing() is not None, reason=str(aot_gpu.missing()))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model", matmuls.MODELS)
def test_kernels_compile_for_an_h200_and_spill_nothing(model, dtype):
  D, _, _, K = matmuls.MODELS[model]
  N, shape = 16384, jax.ShapeDtypeStruct
  x_ND, tables = shape((N, D), dtype), (shape((N * K,), jnp.int32), shape((N, K), jnp.int32))
  gate_M = shape((N * K,), jnp.float32)

  def both(x_ND, gate_M, token_M, row_NK):
    def loss(x_ND, gate_M):
      x_MD = permute.permute(x_ND, token_M, row_NK)
      return jnp.sum(permute.unpermute(x_MD, gate_M, token_M, row_NK).astype(jnp.float32) ** 2)

    return jax.grad(loss, (0, 1))(x_ND, gate_M)

  found = {kernel.name: kernel for kernel in aot_gpu.kernels(both, x_ND, gate_M, *tables)}
  assert {"permute", "unpermute", "unpermute_gradient"} <= {n.rstrip("_0123456789") for n in found}
  assert all(kernel.spilled == 0 for kernel in found.values())


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_on_a_gpu(part):
  if jax.default_backend() != "gpu":
    pytest.skip("needs a GPU")
  for case in (*cases.TEST.values(), cases.Case(1003, 8, 2048, 0.9)):
    check(RUN, part, case)
    check(RUN, part, case, "bfloat16", 1e-2)
