"""Routing on GPUs against its loops: interpreted, compiled for an H200, or run on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot_gpu
from pallas_kernels import routing as op
from pallas_kernels.routing import cases, ref, rule, triton

N = 150  # several blocks of the kernel, the last one not full
QUICK = ("sigmoid_bias", "groups", "logits")


@functools.cache
def interpreted(rule):
  return jax.jit(functools.partial(triton.route, rule=rule, interpret=True))


def check(function, case, args):
  got, want = function(*map(jnp.asarray, args)), ref.route(*args, case.rule)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype
    if a.dtype == np.float32:
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    else:
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "name", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in cases.TEST]
)
def test_a_route_is_that_of_the_loops(name):
  case = cases.TEST[name]
  for seed, kind in enumerate(cases.KINDS):
    check(interpreted(case.rule), case, cases.arguments(case, kind, N, seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.MODELS)
def test_so_is_that_of_a_model(name):
  case = cases.MODELS[name]
  for kind in ("zipf", "ties"):
    check(interpreted(case.rule), case, cases.arguments(case, kind, N))


def test_what_is_no_number_comes_first_and_what_is_none_comes_last():
  """Choices are by lax.top_k, for which a NaN is above everything."""
  logit_NE = np.random.default_rng(0).normal(size=(N, 13)).astype(np.float32)
  logit_NE[::3, 5], logit_NE[1::3] = np.nan, -np.inf
  logit_NE[1::3, 2], logit_NE[2::3, 1:3] = 1, np.array([0, -0.0])
  choice = op.Rule(3, "none", renormalise=False)
  expert_NK = interpreted(choice)(logit_NE, jnp.zeros(13), jnp.ones(N, bool))[0]
  want_NK = np.argsort(np.where(np.isnan(logit_NE), -np.inf, -logit_NE), kind="stable")[:, :3]
  np.testing.assert_array_equal(expert_NK, want_NK)


def test_the_counts_of_many_blocks_are_added_up():
  count_BE = np.random.default_rng(0).integers(0, 9, (71, 45)).astype(np.int32)
  before_BE, size_E = triton._before(jnp.asarray(count_BE), interpret=True)
  np.testing.assert_array_equal(before_BE, np.cumsum(count_BE, axis=0) - count_BE)
  np.testing.assert_array_equal(size_E, count_BE.sum(0))


def test_gates_of_16_bits_have_a_gradient(monkeypatch):
  monkeypatch.setattr(triton, "route", functools.partial(triton.route, interpret=True))
  case = cases.TEST["groups"]
  logit_NE, bias_E, valid_N = map(jnp.asarray, cases.arguments(case, "padding", 20))
  logit_NE, weight_NK = logit_NE.astype(jnp.bfloat16), jnp.arange(1.0, 5)[None]

  def loss(logit_NE):
    route = op.route(logit_NE, case.rule, bias_E, valid_N, implementation="triton")
    return jnp.sum(weight_NK * route[1]), route

  def want(logit_NE, expert_NK):
    return jnp.sum(weight_NK * rule.gates(logit_NE, expert_NK, case.rule))

  dlogit_NE, route = jax.jit(jax.grad(loss, has_aux=True))(logit_NE)
  assert dlogit_NE.dtype == route[1].dtype == jnp.bfloat16
  exact_NE = jnp.where(valid_N[:, None], logit_NE.astype(jnp.float32), 0)
  np.testing.assert_array_equal(route[0], ref.route(exact_NE, bias_E, valid_N, case.rule)[0])
  want_NE = jax.grad(want)(exact_NE, route[0])
  np.testing.assert_allclose(dlogit_NE.astype(jnp.float32), want_NE, atol=0.02)


def test_what_is_not_done_is_said_while_tracing():
  run = lambda E, k, dtype: jax.eval_shape(
    functools.partial(triton.route, rule=op.Rule(k)),
    *shapes(cases.Case(E, op.Rule(k)), N, dtype),
  )
  with pytest.raises(NotImplementedError, match="17 choices of 20 experts"):
    run(20, 17, jnp.float32)
  with pytest.raises(NotImplementedError, match="2 choices of 1025 experts"):
    run(1025, 2, jnp.float32)
  with pytest.raises(NotImplementedError, match="no kernel for 150 tokens with int32 logits"):
    run(20, 2, jnp.int32)


def shapes(case, N, dtype=jnp.float32):
  S = jax.ShapeDtypeStruct
  return S((N, case.E), dtype), S((case.E,), jnp.float32), S((N,), jnp.bool_)


@pytest.mark.aot
@pytest.mark.skipif(aot_gpu.missing() is not None, reason=str(aot_gpu.missing()))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", cases.MODELS)
def test_the_kernels_compile_for_an_h200_and_spill_nothing(name, dtype):
  """By the name that the machine of the context mesh chooses."""
  case = cases.MODELS[name]
  route = lambda logit_NE, *rest: op.route(logit_NE, case.rule, *rest)
  found = {k.name: k for k in aot_gpu.kernels(route, *shapes(case, 16384, jnp.dtype(dtype)))}
  assert {"routing", "routing_before"} <= set(found)
  for kernel in found.values():
    assert kernel.spilled == 0 and kernel.registers * kernel.threads <= 65536


@pytest.mark.aot
@pytest.mark.skipif(aot_gpu.missing() is not None, reason=str(aot_gpu.missing()))
def test_nothing_but_the_logits_is_as_long_as_they_are():
  case = cases.MODELS["deepseek_v3"]
  gates = lambda logit_NE, *rest: op.route(logit_NE, case.rule, *rest)[1].sum()
  program = aot_gpu.compiled(jax.grad(gates), *shapes(case, 16384))
  assert program.memory_analysis().temp_size_in_bytes < 2 * 4 * 16384 * case.E


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*cases.TEST, *cases.MODELS])
def test_on_a_gpu(name):
  if jax.default_backend() != "gpu":
    pytest.skip("needs a GPU")
  case = (cases.TEST | cases.MODELS)[name]
  run = jax.jit(functools.partial(triton.route, rule=case.rule))
  for kind in cases.KINDS:
    args = cases.arguments(case, kind, 1003)
    check(run, case, args)
    for a, b in zip(run(*args), run(*args), strict=True):  # the same again, whatever ran first
      np.testing.assert_array_equal(a, b)
