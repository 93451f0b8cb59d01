"""Routing kernels: the choice of the highest scores and the sort by expert, against the library."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core import routing as core
from pallas_kernels import aot
from pallas_kernels import routing as op
from pallas_kernels.routing import cases, library, ref, tpu, xla
from pallas_kernels.routing.rule import gates

TOP_K = jax.jit(xla.top_k, static_argnums=1)
SHAPES = {  # tokens, experts, choices: one block, several with a rest, groups of experts
  "few": (250, 66, 5),
  "blocks": (600, 30, 3),
  "groups": (70, 264, 9),
}


def scores(shape, kind):
  """Numbers that are hard to tell apart, or to compare at all."""
  rng = np.random.default_rng(0)
  normal = rng.normal(size=shape).astype(np.float32)
  masked = np.where(rng.random(shape) < 0.7, -np.inf, normal).astype(np.float32)
  masked[0], masked[1] = -np.inf, np.inf
  return {
    "normal": normal,
    "ties": np.round(normal),
    "equal": np.zeros_like(normal),
    "signed_zeros": np.copysign(0, normal),
    "last_bits": np.float32(1) + rng.integers(0, 40, shape).astype(np.float32) * 2.0**-23,
    "last_bits_below_0": -1 - rng.integers(0, 40, shape).astype(np.float32) * 2.0**-23,
    "huge": normal * np.float32(6e37),
    "tiny": normal * np.float32(1e-40),
    "masked": masked,
    "any_bits": rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),  # NaN too
  }[kind].astype(np.float32)


KINDS = ("normal", "ties", "equal", "signed_zeros", "last_bits", "last_bits_below_0", "huge",
         "tiny", "masked", "any_bits")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_highest_scores_are_those_of_lax_top_k(shape, kind):
  N, E, k = SHAPES[shape]
  score_NE = scores((N, E), kind)
  assert xla.does(N, E, k, score_NE.dtype)
  np.testing.assert_array_equal(TOP_K(score_NE, k), jax.lax.top_k(score_NE, k)[1])


def test_what_is_not_done_in_rounds_is_done_by_the_library():
  score_NE = scores((500, 40), "normal")
  assert not xla.does(500, 40, 20, score_NE.dtype)
  np.testing.assert_array_equal(TOP_K(score_NE, 20), jax.lax.top_k(score_NE, 20)[1])
  with jax.enable_x64(True):
    wide_NE = jnp.asarray(1 + 2.0**-40 * np.arange(40)[None], jnp.float64)
    wide_NE = jnp.broadcast_to(wide_NE, (500, 40))
    assert (TOP_K(wide_NE, 2) == jnp.array([[39, 38]])).all()


def test_scores_may_be_mapped_and_have_no_gradient():
  score_BNE = jnp.asarray(scores((3, 250, 66), "last_bits"))
  got_BNK = jax.jit(jax.vmap(functools.partial(core.top_k, k=2)))(score_BNE)
  np.testing.assert_array_equal(got_BNK, jax.lax.top_k(score_BNE, 2)[1])

  def chosen(score_NE):
    return core.take(score_NE, core.top_k(score_NE, 2)).sum()

  dscore_NE = np.asarray(jax.jit(jax.grad(chosen))(score_BNE[0]))
  np.testing.assert_array_equal(dscore_NE.sum(1), 2)
  np.testing.assert_array_equal(np.take_along_axis(dscore_NE, np.asarray(got_BNK[0]), 1), 1)


def test_devices_choose_for_their_own_tokens():
  mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
  score_NE = scores((256, 66), "ties")
  want_NK = jax.lax.top_k(score_NE, 2)[1]
  with jax.set_mesh(mesh):
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    program = jax.jit(lambda score_NE: core.top_k(score_NE, 2), in_shardings=cut)
    program = program.lower(score_NE).compile()
    np.testing.assert_array_equal(program(jax.device_put(score_NE, cut)), want_NK)
  assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "last_bits", "masked"])
@pytest.mark.parametrize("k", [1, 5])
def test_a_tpu_chooses_the_same_scores(k, kind):
  score_NE = scores((150, 130), kind)
  got_NK = IN_TPU_TOP_K(score_NE, k)
  np.testing.assert_array_equal(got_NK, jax.lax.top_k(score_NE, k)[1])


IN_TPU_TOP_K = jax.jit(functools.partial(tpu.top_k, interpret=True), static_argnums=1)
IN_TPU = types.SimpleNamespace(sort=functools.partial(tpu.sort, interpret=True))


@pytest.mark.parametrize("module", [xla, library, IN_TPU], ids=["xla", "library", "tpu"])
@pytest.mark.parametrize(("M", "E"), [(9, 3), (2048, 4), (2100, 7), (2500, 40), (6, 40)])
def test_rows_are_sorted_as_by_a_stable_sort(module, M, E):
  expert_M = np.random.default_rng(0).integers(0, E + 1, M)  # E: of none
  order_M, place_M, size_E = jax.jit(module.sort, static_argnums=1)(expert_M, E)
  want_M = np.argsort(expert_M, kind="stable")
  np.testing.assert_array_equal(order_M, want_M)
  np.testing.assert_array_equal(place_M, np.argsort(want_M))
  np.testing.assert_array_equal(size_E, np.bincount(expert_M, minlength=E + 1)[:E])


def test_expert_and_row_may_be_too_much_for_one_integer():
  expert_M = jnp.array([2**30 - 1, 3, 2**30 - 1, 0])
  order_M = jax.jit(lambda expert_M: library.sort(expert_M, 2**30)[0])(expert_M)
  assert order_M.tolist() == [3, 1, 0, 2]


N = 150  # two blocks of the kernel, the second one not full
COMPILED = {
  name: {
    "tpu": jax.jit(functools.partial(tpu.route, rule=case.rule, interpret=True)),
    "xla": jax.jit(functools.partial(xla.route, rule=case.rule)),
  }
  for name, case in cases.TEST.items()
}


SLOW = [("tpu", case) for case in cases.TEST if case not in ("plain_softmax", "groups")]


@pytest.mark.parametrize(
  ("implementation", "case"),
  [
    pytest.param(*pair, marks=[pytest.mark.slow] if pair in SLOW else [])
    for pair in itertools.product(["tpu", "xla"], cases.TEST)
  ],
)
def test_a_route_is_that_of_the_loops(implementation, case):
  for kind in cases.KINDS:
    args = cases.arguments(cases.TEST[case], kind, N)
    got, want = COMPILED[case][implementation](*args), ref.route(*args, cases.TEST[case].rule)
    for a, b in zip(got, want, strict=True):
      assert a.dtype == b.dtype
      if a.dtype == np.float32:
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
      else:
        np.testing.assert_array_equal(a, b, kind)


@pytest.mark.parametrize("case", cases.TEST)
def test_the_gradient_is_that_of_the_gates(case):
  """Against automatic gradients of the gates' definition in float64, padding included."""
  rule = cases.TEST[case].rule
  with jax.enable_x64(True):
    logit_NE, bias_E, valid_N = cases.arguments(cases.TEST[case], "padding", 20)
    expert_NK = ref.route(logit_NE, bias_E, valid_N, rule)[0]
    logit_NE, weight_NK = jnp.asarray(logit_NE, jnp.float64), jnp.arange(1.0, 1 + rule.k)[None]

    def loss(logit_NE):
      return jnp.sum(weight_NK * jnp.sin(op.route(logit_NE, rule, bias_E, valid_N)[1]))

    def want(logit_NE):
      return jnp.sum(weight_NK * jnp.sin(gates(logit_NE, jnp.asarray(expert_NK), rule)))

    clean_NE = jnp.where(valid_N[:, None], logit_NE, 0)
    got_NE, want_NE = jax.jit(jax.grad(loss))(logit_NE), jax.jit(jax.grad(want))(clean_NE)
  np.testing.assert_allclose(got_NE, want_NE, rtol=1e-10, atol=1e-12)
  assert (np.asarray(got_NE)[~valid_N] == 0).all()


def test_what_cannot_be_chosen_is_refused():
  logit_NE = jnp.zeros((4, 6))
  for rule in (
    op.Rule(7), op.Rule(2, "relu"), op.Rule(2, groups=4), op.Rule(4, groups=2, keep=1),
  ):  # fmt: skip
    with pytest.raises(ValueError, match="routing: .*; |routing: .* use "):
      op.route(logit_NE, rule)
  with pytest.raises(ValueError, match=r"bias_E has the shape \(5,\)"):
    op.route(logit_NE, op.Rule(2), jnp.zeros(5))
  with pytest.raises(NotImplementedError, match="17 choices of 20 experts"):
    tpu.route(jnp.zeros((4, 20)), jnp.zeros(20), jnp.ones(4, bool), op.Rule(17))


@pytest.mark.aot
@pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))
@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_the_kernels_compile_for_a_tpu(chip, model):
  """By the name that the chip's mesh chooses; what has K columns takes whole lanes of 128."""
  case = cases.MODELS[model]
  route = lambda logit_NE, *rest: op.route(logit_NE, case.rule, *rest)
  program = aot.compile(route, *shapes(case), mesh=aot.mesh(chip))
  assert set(program.kernels) == {"routing", "routing_places"}
  assert program.temporary <= 4 * 8192 * (max(case.E, 128) + 5 * 128)


@pytest.mark.aot
@pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))
@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_so_do_its_halves(chip, model):
  """What a layer uses; only the order is sorted, and nothing is scattered."""
  (E, rule, _), N = cases.MODELS[model], 8192

  def halves(score_NE):
    expert_NK = op.top_k(score_NE, rule.k)
    return op.sort(expert_NK.ravel(), E)

  program = aot.compile(halves, jax.ShapeDtypeStruct((N, E), jnp.float32), mesh=aot.mesh(chip))
  assert program.kernels == ["routing_top_k", "routing_ranks", "routing_sorted"]
  assert "scatter" not in program.text


@pytest.mark.aot
@pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))
def test_the_gradient_on_a_tpu_has_no_array_longer_than_the_logits():
  case = cases.MODELS["deepseek_v3"]
  gates = lambda logit_NE, *rest: op.route(logit_NE, case.rule, *rest)[1].sum()
  program = aot.compile(jax.grad(gates), *shapes(case), mesh=aot.mesh("v5p"))
  assert program.temporary < 4 * (4 * 8192 * case.E)


def shapes(case):
  S = jax.ShapeDtypeStruct
  return S((8192, case.E), jnp.float32), S((case.E,), jnp.float32), S((8192,), jnp.bool_)


SCORES = jnp.ones((4, 3))


@pytest.mark.parametrize(
  "call, told",
  [
    (lambda: op.top_k(SCORES[0], 1), r"top_k got score_NE as float32\[3\]; give a floating array"),
    (lambda: op.top_k(SCORES.astype(int), 1), r"as int32\[4, 3\]; give a floating array of 2 axes"),
    (lambda: op.top_k(SCORES, 4), r"k=4 of 3 experts cannot be chosen; use a k within 1\.\.3"),
    (lambda: op.sort(SCORES[0], 3), r"sort got expert_M as float32\[3\]; give an integer array"),
    (lambda: op.sort(jnp.zeros((4, 2), int), 3), r"as int32\[4, 2\]; give an integer array of 1"),
    (lambda: op.sort(jnp.zeros(4, int), 0), "sort by 0 experts; give as many as there are"),
    (lambda: op.route(SCORES[0], op.Rule(1)), r"route got logit_NE as float32\[3\]"),
    (lambda: op.route(SCORES, op.Rule(1), valid_N=jnp.ones(3)), r"valid_N has the shape \(3,\)"),
  ],
)
def test_wrong_use_is_one_sentence(call, told):
  with pytest.raises(ValueError, match=told):
    call()


def test_beyond_the_limits_of_a_kernel_the_next_one_serves_and_a_name_says_why():
  score_NE = jnp.asarray(np.random.default_rng(0).normal(size=(4, 20)), jnp.float32)
  np.testing.assert_array_equal(op.top_k(score_NE, 17), jax.lax.top_k(score_NE, 17)[1])
  for name in ("tpu", "triton"):
    with pytest.raises(ValueError, match="17 choices of 20 experts.*choose another implementation"):
      op.route(score_NE, op.Rule(17), implementation=name)
