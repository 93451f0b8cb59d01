"""Every implementation of the grouped matmul against its definition, forward and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from pallas_kernels import grouped_matmul
from pallas_kernels.grouped_matmul import cases, ragged, ref, xla

WINDOWS = (6, 2)
IMPLEMENTATIONS = {
  "xla": functools.partial(xla.grouped_matmul, windows=WINDOWS),
  "ragged": ragged.grouped_matmul,
  "ref": ref.grouped_matmul,
}


@functools.partial(jax.jit, static_argnums=0)
def outcome(name, x_MD, w_EDF, size_E):
  """((loss, y), gradients of x and w)."""

  def loss(x_MD, w_EDF):
    y_MF = IMPLEMENTATIONS[name](x_MD, w_EDF, size_E)
    return jnp.sum(jnp.sin(y_MF)), y_MF

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x_MD, w_EDF)


def arguments(case, dtype=np.float32):
  rng = np.random.default_rng(0)
  x_MD, w_EDF = (rng.normal(size=s) for s in [(case.M, case.D), (case.E, case.D, case.F)])
  return jnp.asarray(x_MD, dtype), jnp.asarray(w_EDF, dtype), jnp.asarray(cases.sizes(case))


@pytest.mark.parametrize("case", cases.TEST)
def test_windows_match_the_definition_in_float64(case):
  with jax.enable_x64(True):
    args = arguments(cases.TEST[case], np.float64)
    got, want = outcome("xla", *args), outcome("ref", *args)
    assert got[0][1].dtype == np.float64
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["skewed", "rows_left_over"])
def test_ragged_dot_matches_the_definition(case):
  args = arguments(cases.TEST[case])
  assert_close(outcome("ragged", *args), outcome("ref", *args))


def test_bfloat16_stays_near_and_keeps_its_dtype():
  x_MD, w_EDF, size_E = arguments(cases.TEST["empty_experts"])
  got = outcome("xla", x_MD.astype(jnp.bfloat16), w_EDF.astype(jnp.bfloat16), size_E)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
  y_MF, grads = got[0][1].astype(jnp.float32), jax.tree.map(lambda g: g.astype(jnp.float32), got[1])
  (_, want_MF), want_grads = outcome("ref", x_MD, w_EDF, size_E)
  for a, b in zip((y_MF, *grads), (want_MF, *want_grads), strict=True):
    np.testing.assert_allclose(a, b, atol=0.1 * float(jnp.abs(b).max()))


def test_unused_rows_give_zeros_whatever_is_in_them():
  x_MD, w_EDF, size_E = arguments(cases.TEST["rows_left_over"])
  used = int(size_E.sum())
  (loss, y_MF), (dx_MD, dw_EDF) = outcome("xla", x_MD.at[used:].set(jnp.nan), w_EDF, size_E)
  np.testing.assert_array_equal(y_MF[used:], 0)
  np.testing.assert_array_equal(dx_MD[used:], 0)
  assert_close(((loss, y_MF), (dx_MD, dw_EDF)), outcome("ref", x_MD, w_EDF, size_E))


@pytest.mark.parametrize("shared", [False, True])
def test_vmap_is_one_call_with_more_experts(shared):
  keys = jax.random.split(jax.random.key(0), 2)
  x_GMD = jax.random.normal(keys[0], (3, 9, 5))
  w_GEDF = jax.random.normal(keys[1], (4, 5, 7) if shared else (3, 4, 5, 7))
  size_GE = jnp.array([[2, 0, 3, 4], [9, 0, 0, 0], [1, 1, 1, 1]])
  over = (0, None if shared else 0, 0)

  def loss(x_GMD, w_GEDF, name):
    y_GMF = jax.vmap(IMPLEMENTATIONS[name], over)(x_GMD, w_GEDF, size_GE)
    return jnp.sum(jnp.sin(y_GMF)), y_GMF

  grad_fn = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
  assert_close(grad_fn(x_GMD, w_GEDF, "xla"), grad_fn(x_GMD, w_GEDF, "ref"))
  assert "f32[12,5,7]" in str(jax.make_jaxpr(grad_fn, static_argnums=2)(x_GMD, w_GEDF, "xla"))


def test_nothing_in_the_program_is_as_large_as_experts_times_rows():
  case = cases.Case(97, 11, 13, 7, "zipf")
  text = outcome.lower("xla", *arguments(case)).compile().as_text()
  sizes = {
    int(np.prod([int(n) for n in s.split(",")])) for s in re.findall(r"\w\[([\d,]+)\]", text)
  }
  assert max(sizes) == max(97 * 13, 7 * 11 * 13)  # the result, the weights


def test_the_context_decides_which_one_runs():
  args = arguments(cases.TEST["even"])
  assert "while" in str(jax.make_jaxpr(grouped_matmul.grouped_matmul)(*args))
  mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=h200())
  with jax.sharding.use_abstract_mesh(mesh):
    assert "ragged_dot" in str(jax.make_jaxpr(grouped_matmul.grouped_matmul)(*args))


def h200():
  return jax.sharding.AbstractDevice("NVIDIA H200", 132, "cuda")
