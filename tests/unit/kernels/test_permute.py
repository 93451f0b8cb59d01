"""Rows of tokens and back, by every implementation: against loops, forward and gradients."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import permute as op
from pallas_kernels import tpu_rows
from pallas_kernels.permute import cases, ref, tpu, xla

PASSES = {
  "xla": (xla.rows, xla.tokens, xla.d_tokens),
  "tpu": tuple(functools.partial(f, interpret=True) for f in (tpu.rows, tpu.tokens, tpu.d_tokens)),
}


def arguments(case, dtype=np.float64):
  """(x_ND, y_MD, gate_M, dy_ND) and the tables."""
  rng, M = np.random.default_rng(0), case.N * case.K
  shapes = [(case.N, case.D), (M, case.D), (M,), (case.N, case.D)]
  return [rng.normal(size=shape).astype(dtype) for shape in shapes], cases.tables(case)


@functools.partial(jax.jit, static_argnums=0)
def passes(name, x_ND, y_MD, gate_M, dy_ND, token_M, row_NK):
  """The four results of three passes; rows of nobody are NaN."""
  rows, tokens, d_tokens = PASSES[name]
  dirty = jnp.where(token_M < 0, jnp.nan, 0)
  y_MD, gate_M = y_MD + dirty[:, None], gate_M + dirty
  return (
    rows(x_ND, token_M),
    tokens(y_MD, gate_M, row_NK),
    tokens(y_MD, None, row_NK),
    *d_tokens(dy_ND, y_MD, gate_M, token_M),
  )


def wanted(case):
  (x_ND, y_MD, gate_M, dy_ND), (token_M, row_NK) = arguments(case)
  return (
    ref.rows(x_ND, token_M),
    ref.tokens(y_MD, gate_M, row_NK),
    ref.tokens(y_MD, None, row_NK),
    *ref.d_tokens(dy_ND, y_MD, gate_M, token_M),
  )


@pytest.mark.parametrize("case", cases.TEST)
def test_plain_xla_is_the_definition_in_float64(case):
  with jax.enable_x64(True):
    real, tables = arguments(cases.TEST[case])
    for a, b in zip(passes("xla", *real, *tables), wanted(cases.TEST[case]), strict=True):
      assert a.dtype == np.float64
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", cases.TEST)
def test_tpu_kernels_match_the_definition(case):
  real, tables = arguments(cases.TEST[case], np.float32)
  assert_close(passes("tpu", *real, *tables), tuple(map(np.asarray, wanted(cases.TEST[case]))))


def test_words_hold_two_numbers_each():
  x_ND = jnp.asarray(np.random.default_rng(0).normal(size=(21, 768)), jnp.bfloat16)
  word_NW = tpu_rows.words(x_ND, interpret=True)
  assert (word_NW.dtype, word_NW.shape) == (jnp.uint32, (21, 384))
  np.testing.assert_array_equal(tpu_rows.unpack(word_NW).astype(jnp.bfloat16), x_ND)


def test_bfloat16_is_moved_as_it_is_and_summed_in_float32():
  case = cases.TEST["packed"]
  real, (token_M, row_NK) = arguments(case, jnp.bfloat16)
  wide = [a.astype(np.float32) for a in real]
  x_MD, y_ND, _, dy_MD, dgate_M = passes("tpu", *real, token_M, row_NK)
  assert {a.dtype for a in (x_MD, y_ND, dy_MD)} == {jnp.dtype(jnp.bfloat16)}
  np.testing.assert_array_equal(x_MD.astype(np.float32), ref.rows(wide[0], token_M))
  want_ND = jnp.asarray(ref.tokens(wide[1], wide[2], row_NK), jnp.bfloat16)
  np.testing.assert_array_equal(y_ND, want_ND)
  want_MD, want_M = ref.d_tokens(wide[3], wide[1], wide[2], token_M)
  np.testing.assert_array_equal(dy_MD, jnp.asarray(want_MD, jnp.bfloat16))
  np.testing.assert_allclose(dgate_M, want_M, atol=1e-4)


@pytest.mark.parametrize("name", ["xla", "tpu"])
def test_gradients_are_the_passes(name):
  (x_ND, y_MD, gate_M, _), tables = arguments(cases.TEST["holes"], np.float32)

  def loss(x_ND, y_MD, gate_M, permute, unpermute):
    way = unpermute(jnp.sin(permute(x_ND, *tables)) + y_MD, gate_M, *tables)
    return jnp.sum(jnp.sin(way))

  grad = lambda *fns: jax.grad(functools.partial(loss, permute=fns[0], unpermute=fns[1]), (0, 1, 2))
  plain = lambda x_ND, token_M, _: xla.rows(x_ND, token_M)
  sums = lambda y_MD, gate_M, _, row_NK: xla.tokens(y_MD, gate_M, row_NK)
  want = jax.jit(grad(plain, sums))(x_ND, y_MD, gate_M)
  way = {"implementation": name}
  with pltpu.force_tpu_interpret_mode() if name == "tpu" else contextlib.nullcontext():
    got = jax.jit(
      grad(functools.partial(op.permute, **way), functools.partial(op.unpermute, **way))
    )(x_ND, y_MD, gate_M)
  used_M = tables[0] >= 0
  assert_close(got[0], want[0])
  assert_close(got[1][used_M], want[1][used_M])
  assert_close(got[2][used_M], want[2][used_M])


@pytest.mark.slow
def test_tpu_kernels_race_with_nothing(capsys):
  """In the interpreter that has a TPU's memories; it prints what it finds."""
  case = cases.Case(41, 2, 256, 0.7)
  real, (token_M, row_NK) = arguments(case, np.float32)
  x_ND, y_MD, gate_M, dy_ND = map(jnp.asarray, real)
  memories = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="uninitialized")
  with pltpu.force_tpu_interpret_mode(memories):
    x_MD = tpu.rows(x_ND, jnp.asarray(token_M))
    y_ND = tpu.tokens(y_MD, gate_M, jnp.asarray(row_NK))
    d = tpu.d_tokens(dy_ND, y_MD, gate_M, jnp.asarray(token_M))
  assert "RACE" not in capsys.readouterr().out
  assert_close(x_MD, ref.rows(real[0], token_M))
  assert_close(y_ND, ref.tokens(real[1], real[2], row_NK))
  assert_close(d, ref.d_tokens(real[3], *real[1:3], token_M))


TOKEN, ROW = jnp.array([1, 0, -1, 1]), jnp.array([[1, 4], [0, 3]])


@pytest.mark.parametrize(
  "call, told",
  [
    (
      lambda: op.permute(jnp.ones((3, 2)), TOKEN, ROW),
      "x_ND is \\[3, 2\\] beside tables of 4 rows",
    ),
    (lambda: op.permute(jnp.ones(2), TOKEN, ROW), "they need 2, 1, 2"),
    (lambda: op.unpermute(jnp.ones((3, 2)), jnp.ones(4), TOKEN, ROW), "y_MD is \\[3, 2\\] beside"),
    (lambda: op.unpermute(jnp.ones((4, 2)), jnp.ones(3), TOKEN, ROW), "gates for 4 rows"),
    (lambda: op.permute(jnp.ones((2, 2)), TOKEN * 1.0, ROW), "name no rows; give int32"),
  ],
)
def test_wrong_use_is_one_sentence(call, told):
  with pytest.raises(ValueError, match=told):
    call()
