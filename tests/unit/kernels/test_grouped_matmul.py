"""Every implementation of the grouped matmul against its definition: three passes, then as one."""

import dataclasses
import functools
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul import cases, quantised, ragged, ref, tpu, xla

PASSES = ("forward", "d_lhs", "d_rhs")
IMPLEMENTATIONS = {
  "xla": {name: functools.partial(getattr(xla, name), config=(0, 6, 2)) for name in PASSES},
  # 8 rows of each expert: a batch of all, of most, or none where it would hold too few
  "batch": {name: functools.partial(getattr(xla, name), config=(100, 6, 2)) for name in PASSES},
  # tiles that divide nothing; sums over inputs at once in the forward pass, in parts in d_lhs
  "tpu": {
    name: functools.partial(getattr(tpu, name), tile=tpu.Tiles(8, 5, 4), interpret=True)
    for name in PASSES
  },
  "ragged": {name: getattr(ragged, name) for name in PASSES},
  "ref": {name: getattr(ref, name) for name in PASSES},
}


@functools.partial(jax.jit, static_argnums=0)
def passes(name, x_MD, w_EDF, g_MF, size_E):
  """(y_MF, dx_MD, dw_EDF)."""
  run = types.SimpleNamespace(**IMPLEMENTATIONS[name])
  return (
    run.forward(x_MD, w_EDF, size_E),
    run.d_lhs(g_MF, w_EDF, size_E),
    run.d_rhs(x_MD, g_MF, size_E),
  )


def arguments(case, dtype=np.float32, dirty=False):
  """(x_MD, w_EDF, g_MF, size_E); dirty rows are NaN beyond the last group."""
  rng, size_E = np.random.default_rng(0), cases.sizes(case)
  shapes = [(case.M, case.D), (case.E, case.D, case.F), (case.M, case.F)]
  x_MD, w_EDF, g_MF = (rng.normal(size=shape) for shape in shapes)
  if dirty:
    x_MD[size_E.sum() :] = g_MF[size_E.sum() :] = np.nan
  return *(jnp.asarray(a, dtype) for a in (x_MD, w_EDF, g_MF)), jnp.asarray(size_E)


@pytest.mark.parametrize("case", cases.TEST)
@pytest.mark.parametrize("name", ["xla", "batch"])
def test_xla_matches_the_definition_in_float64(name, case):
  with jax.enable_x64(True):
    want = passes("ref", *arguments(cases.TEST[case], np.float64))
    got = passes(name, *arguments(cases.TEST[case], np.float64, dirty=True))
    for a, b in zip(got, want, strict=True):
      assert a.dtype == np.float64
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_any_experts_may_be_empty_beside_a_batch():
  """Of 2^8 patterns half have a batch that holds most rows, and half go through windows."""
  x_MD, w_EDF, g_MF, _ = arguments(cases.Case(64, 5, 7, 8))
  for i, busy in enumerate(itertools.product((0, 1), repeat=8)):
    size_E = jnp.array(busy) * (5 + 3 * (i % 2)) if sum(busy) else jnp.zeros(8, int)
    size_E = size_E.at[int(np.argmax(busy))].multiply(2) if 0 < sum(busy) < 8 else size_E
    want = passes("ref", x_MD, w_EDF, g_MF, size_E)
    assert_close(passes("batch", x_MD, w_EDF, g_MF, size_E), want)


def test_few_rows_and_many_go_back_through_transposed_weights_alike():
  """Up to FEW rows of an expert another operand is packed; in bfloat16 sums stay float32."""
  a_ECI, w_EOI = (
    jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    for shape in ((3, xla.FEW + 5, 6), (3, 7, 6))
  )
  want_ECO = np.asarray(a_ECI, np.float64) @ np.asarray(w_EOI, np.float64).swapaxes(1, 2)
  for rows in (1, xla.FEW, xla.FEW + 1, xla.FEW + 5):
    y_ECO = jax.jit(xla.times_transposed)(a_ECI[:, :rows], w_EOI)
    np.testing.assert_allclose(y_ECO, want_ECO[:, :rows], rtol=1e-5, atol=1e-5)
    short = jax.jit(xla.times_transposed)(
      *(a.astype(jnp.bfloat16) for a in (a_ECI[:, :rows], w_EOI))
    )
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, want_ECO[:, :rows], rtol=0.05, atol=0.1)


def test_a_batch_is_made_where_it_holds_most_rows():
  for sizes, made in (((8,) * 8, True), ((64, *[0] * 7), False), ((23, *[5] * 7), True)):
    batch = lambda row_EC: jnp.float32(row_EC.shape[1])
    value, first_E, last_E, busy_E, count = xla._left(
      100, 64, jnp.array(sizes), batch, jnp.float32(0)
    )
    left = [max(0, size - 8 * made) for size in sizes]
    assert float(value) == 8 * made and (last_E - first_E).tolist() == left
    assert int(count) == np.count_nonzero(left) and set(busy_E[:count].tolist()) <= {0}


@pytest.mark.parametrize("case", ["skewed", "rows_left_over", "nothing"])
def test_ragged_dot_matches_the_definition(case):
  want = passes("ref", *arguments(cases.TEST[case]))
  assert_close(passes("ragged", *arguments(cases.TEST[case], dirty=True)), want)


@pytest.mark.parametrize("case", cases.TEST)
def test_tpu_kernels_match_the_definition(case):
  want = passes("ref", *arguments(cases.TEST[case]))
  assert_close(passes("tpu", *arguments(cases.TEST[case], dirty=True)), want)


def test_tpu_kernels_with_every_pattern_of_empty_groups():
  M, E, rng = 29, 8, np.random.default_rng(1)
  x_MD, w_EDF, g_MF = rng.normal(size=(M, 5)), rng.normal(size=(E, 5, 7)), rng.normal(size=(M, 7))
  single = functools.partial(jnp.asarray, dtype=jnp.float32)
  for pattern in itertools.product((0, 1), repeat=E):
    size_E = np.array(pattern) * rng.integers(1, 4, E)
    ends = np.cumsum(size_E)
    parts = [slice(last - size, last) for size, last in zip(size_E, ends, strict=True)]
    y_MF, dx_MD = np.zeros((M, 7)), np.zeros((M, 5))
    for w_DF, rows in zip(w_EDF, parts, strict=True):
      y_MF[rows], dx_MD[rows] = x_MD[rows] @ w_DF, g_MF[rows] @ w_DF.T
    dw_EDF = np.stack([x_MD[rows].T @ g_MF[rows] for rows in parts])
    dirty = [np.where(np.arange(M)[:, None] < ends[-1], a, np.nan) for a in (x_MD, g_MF)]
    got = passes("tpu", single(dirty[0]), single(w_EDF), single(dirty[1]), jnp.array(size_E))
    for a, b in zip(got, (y_MF, dx_MD, dw_EDF), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_tpu_kernels_race_with_nothing_and_have_bfloat16(capsys):
  """In the interpreter that has a TPU's memories, through the differentiable function.

  It prints what it finds.
  """
  x_MD, w_EDF, _, size_E = arguments(cases.Case(23, 8, 8, 3, (9, 0, 12)))
  want = DEFINITION(x_MD, w_EDF, size_E)
  dirty_MD = x_MD.at[21:].set(jnp.nan).astype(jnp.bfloat16)
  memories = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="uninitialized")
  with pltpu.force_tpu_interpret_mode(memories):
    got = as_one("tpu")(dirty_MD, w_EDF.astype(jnp.bfloat16), size_E)
  assert "RACE" not in capsys.readouterr().out
  for a, b in zip(jax.tree.leaves(got)[1:], jax.tree.leaves(want)[1:], strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.1 * float(jnp.abs(b).max()))


def as_one(implementation):
  """x, w, size_E -> ((loss, y), gradients of x and w) of the differentiable function."""

  def loss(x_MD, w_EDF, size_E):
    y_MF = op.grouped_matmul(x_MD, w_EDF, size_E, implementation=implementation)
    return jnp.sum(jnp.sin(y_MF)), y_MF

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


CHOSEN, DEFINITION = as_one(None), as_one("ref")


def test_the_gradient_is_the_two_passes_and_nan_in_unused_rows_stays_there():
  x_MD, w_EDF, _, size_E = arguments(cases.TEST["rows_left_over"])
  dirty_MD = x_MD.at[int(size_E.sum()) :].set(jnp.nan)
  got = CHOSEN(dirty_MD, w_EDF, size_E)
  want_fn = jax.value_and_grad(
    lambda x, w: jnp.sum(jnp.sin(ref.grouped_matmul(x, w, size_E))), (0, 1)
  )
  loss, grads = want_fn(x_MD, w_EDF)
  assert_close((got[0][0], got[1]), (loss, grads))
  np.testing.assert_array_equal(got[1][0][int(size_E.sum()) :], 0)


def test_bfloat16_stays_near_and_keeps_its_dtype():
  x_MD, w_EDF, _, size_E = arguments(cases.TEST["empty_experts"])
  got = CHOSEN(x_MD.astype(jnp.bfloat16), w_EDF.astype(jnp.bfloat16), size_E)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
  want = DEFINITION(x_MD, w_EDF, size_E)
  for a, b in zip(jax.tree.leaves(got)[1:], jax.tree.leaves(want)[1:], strict=True):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.1 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("shared", [False, True])
def test_vmap_is_one_call_with_more_experts(shared):
  keys = jax.random.split(jax.random.key(0), 2)
  x_GMD = jax.random.normal(keys[0], (3, 9, 5)).at[2, 4:].set(jnp.nan)
  w_GEDF = jax.random.normal(keys[1], (4, 5, 7) if shared else (3, 4, 5, 7))
  size_GE = jnp.array([[2, 0, 3, 4], [9, 0, 0, 0], [1, 1, 1, 1]])
  over = (0, None if shared else 0, 0)

  def loss(x_GMD, w_GEDF, grouped_matmul):
    y_GMF = jax.vmap(grouped_matmul, over)(x_GMD, w_GEDF, size_GE)
    return jnp.sum(jnp.sin(y_GMF)), y_GMF

  grad_fn = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
  want = grad_fn(jnp.nan_to_num(x_GMD), w_GEDF, ref.grouped_matmul)
  assert_close(grad_fn(x_GMD, w_GEDF, op.grouped_matmul), want)
  program = jax.make_jaxpr(grad_fn, static_argnums=2)(x_GMD, w_GEDF, op.grouped_matmul)
  assert "f32[12,5,7]" in str(program)


def test_nothing_in_the_program_is_as_large_as_experts_times_rows():
  case = cases.Case(97, 11, 13, 7, "zipf")
  x_MD, w_EDF, _, size_E = arguments(case)
  text = as_one("xla").lower(x_MD, w_EDF, size_E).compile().as_text()
  sizes = {
    int(np.prod([int(n) for n in s.split(",")])) for s in re.findall(r"\w\[([\d,]+)\]", text)
  }
  assert max(sizes) == max(97 * 13, 7 * 11 * 13)  # the result, the weights


@pytest.mark.parametrize("sizes", [(0, 3, 5), (3, 0, 5), (3, 4, 0), (0, 3, 0)])
def test_what_has_no_numbers_has_zeros(sizes):
  M, D, F = sizes
  (_, y_MF), (dx_MD, dw_EDF) = CHOSEN(jnp.ones((M, D)), jnp.ones((2, D, F)), jnp.array([M, 0]))
  for a, shape in [(y_MF, (M, F)), (dx_MD, (M, D)), (dw_EDF, (2, D, F))]:
    np.testing.assert_array_equal(a, np.zeros(shape))


@pytest.mark.parametrize("dtype, blocks", [(jnp.int8, 2), (jnp.float8_e4m3fn, 1)])
def test_quantised_weights_are_what_their_numbers_say(dtype, blocks):
  x_MD, w_EDF, _, size_E = arguments(cases.Case(23, 256, 7, 4, (3, 0, 4, 2)))
  w, x = quantised.quantise(w_EDF, dtype, blocks), quantised.quantise(x_MD, dtype)
  assert w.scale.shape == (4, blocks, 7)
  assert float(jnp.abs(quantised.wide(w) - w_EDF).max()) < (0.03 if dtype == jnp.int8 else 0.2)
  kernel = functools.partial(tpu.quantised, tile=tpu.Tiles(8, 256, 4), interpret=True)
  dirty_MD = x_MD.at[9:].set(jnp.nan)
  for rows, dirty in ((x_MD, dirty_MD), (quantised.wide(x), x)):
    want_MF = ref.grouped_matmul(rows, quantised.wide(w), size_E)
    assert_close(op.grouped_matmul(dirty, w, size_E), want_MF)
    assert_close(kernel(dirty, w, size_E), want_MF)
  with pytest.raises(ValueError, match="quantised weights have no gradient"):
    jax.grad(lambda x_MD: op.grouped_matmul(x_MD, w, size_E).sum())(x_MD)


X, W, SIZE = jnp.ones((6, 4)), jnp.ones((2, 4, 3)), jnp.array([2, 3])
narrow = lambda **changes: dataclasses.replace(NARROW, **changes)
NARROW = quantised.quantise(W)


@pytest.mark.parametrize(
  "x_MD, w_EDF, size_E, told",
  [
    (X, jnp.ones((2, 5, 3)), SIZE, "D=4 and D=5 must be equal"),
    (X.astype(jnp.bfloat16), W, SIZE, "give both one floating dtype"),
    (X.astype(jnp.int32), W.astype(jnp.int32), SIZE, "give both one floating dtype"),
    (X, W, jnp.array([1, 1, 1]), "3 sizes for E=2 experts"),
    (X, W, jnp.array([1.0, 1.0]), "sizes are float32; count rows in int32"),
    (X, W, jnp.array([4, 3]), "7 rows in all do not fit M=6"),
    (X, W, jnp.array([4, -1]), "sizes from -1"),
    (X[0], W, SIZE, "they need 2, 3, 1"),
    (quantised.quantise(X), W, SIZE, "quantised rows need quantised weights"),
    (X, narrow(scale=jnp.ones((2, 3, 3))), SIZE, "give \\[E, blocks of D, F\\]"),
    (X, narrow(values=W), SIZE, "weights hold float32; give int8 or an 8-bit float"),
    (X, narrow(values=NARROW.values[:, :3]), SIZE, "D=4 and D=3 must be equal"),
    (narrow(values=X.astype(jnp.int8)), NARROW, SIZE, "scales \\[2, 1, 3\\] of 6 rows"),
  ],
)
def test_wrong_use_is_one_sentence(x_MD, w_EDF, size_E, told):
  with pytest.raises(ValueError, match=told):
    op.grouped_matmul(x_MD, w_EDF, size_E)
