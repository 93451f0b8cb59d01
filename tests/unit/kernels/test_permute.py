"""Rows of tokens and back, by every implementation: against loops, forward and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import permute as op
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
