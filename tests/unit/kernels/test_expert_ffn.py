"""The fused expert FFN against its definition: forward, and gradients of everything real."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from pallas_kernels.expert_ffn import cases, ref, xla


def arguments(name, dtype=np.float32):
  """(what has gradients, indices) of a case."""
  case, rng = cases.TEST[name], np.random.default_rng(0)
  N, K, E, D, F = case.N, case.K, case.E, case.D, case.F
  real = [(N, D), (E, D, F), (E, D, F), (E, F, D), (N * K,)]
  real = [jnp.asarray(0.5 * rng.normal(size=shape), dtype) for shape in real]
  return real, [*map(jnp.asarray, cases.rows(case))]


def outcome_of(module):
  def outcome(real, index):
    def loss(*real):
      y_ND = module.swiglu(*real, *index)
      return jnp.sum(jnp.sin(y_ND)), y_ND

    return jax.value_and_grad(loss, argnums=tuple(range(5)), has_aux=True)(*real)

  return jax.jit(outcome)


GOT, WANT = outcome_of(xla), outcome_of(ref)


@pytest.mark.parametrize("case", cases.TEST)
def test_it_is_the_definition_in_float64(case):
  with jax.enable_x64(True):
    args = arguments(case, np.float64)
    for a, b in zip(jax.tree.leaves(GOT(*args)), jax.tree.leaves(WANT(*args)), strict=True):
      assert a.dtype == np.float64
      np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_unused_rows_may_hold_anything():
  real, index = arguments("holes")
  used = int(index[2].sum())
  dirty = [*real[:4], real[4].at[used:].set(jnp.nan)]
  assert_close(GOT(dirty, index), WANT(real, index))


def test_bfloat16_stays_near_and_keeps_its_dtype():
  real, index = arguments("skewed")
  got = GOT([a.astype(jnp.bfloat16) for a in real], index)
  for a, b in zip(jax.tree.leaves(got)[1:], jax.tree.leaves(WANT(real, index))[1:], strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.06 * float(jnp.abs(b).max()))
