"""Routers whose tokens choose as many experts as they need, and ids that are no experts."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core.plan import RouterInputs, TokenPlan
from moejax.core.plugin import Wrong
from moejax.dispatch import sort
from moejax.layers import mlp, moe, shared
from moejax.routers import biased_topk, relu, top_p, topk

N, E = 64, 8
LOGIT_NE = 2 * drawn.normal(0, N, E)
STATE = {"bias_U": jnp.zeros(E)}


def decide(cfg, logit_NU=LOGIT_NE, state=STATE, **fields):
  return moe.decide(logit_NU, RouterInputs(num_experts=E, state=state, **fields), cfg)


def choices(plan):
  return np.sum(np.asarray(plan.expert_NK) >= 0, axis=1)


def gathering(threshold, logit_NU=LOGIT_NE, **fields):
  return decide(top_p.Config(k=E, threshold=threshold, **fields), logit_NU)


def test_a_threshold_of_zero_is_top_1_and_of_one_the_dense_mixture():
  first = decide(topk.Config(k=1, renormalise=False))
  np.testing.assert_array_equal(gathering(0.0).weights_NE(), first.weights_NE())
  for threshold in (1.0, 1.5):
    np.testing.assert_allclose(
      gathering(threshold).weights_NE(), jax.nn.softmax(LOGIT_NE), rtol=1e-6
    )


def test_choices_never_fall_with_the_threshold():
  counts = np.array([choices(gathering(t)) for t in np.linspace(0, 1, 9)])
  assert np.all(np.diff(counts, axis=0) >= 0) and np.all(counts[0] == 1) and np.all(counts[-1] == E)
  assert len(set(counts[4])) > 1


def test_a_sure_token_has_one_expert_and_an_unsure_one_its_part_of_all():
  sure_NE = jnp.where(jnp.arange(E)[None] == 3, 200.0, 0.0)
  unsure_NE = jnp.zeros((1, E))
  for threshold in (0.0, 0.3, 0.5, 0.7, 0.99):
    assert choices(gathering(threshold, sure_NE)) == [1]
    assert choices(gathering(threshold, unsure_NE)) == [int(threshold * E) + 1]


def test_the_knob_replaces_the_threshold_without_another_trace():
  traces = []

  @jax.jit
  def run(threshold):
    traces.append(threshold)
    return decide(top_p.Config(k=E), knobs={"threshold": threshold}).expert_NK

  for threshold in (0.1, 0.4, 0.8):
    np.testing.assert_array_equal(run(threshold), gathering(threshold).expert_NK)
  assert len(traces) == 1


def test_relu_gates_are_the_positive_logits_and_carry_their_gradient():
  cfg, towards_E = relu.Config(k=E), jnp.arange(1.0, E + 1)[None]
  loss = lambda logit_NE: jnp.sum(decide(cfg, logit_NE).weights_NE() * towards_E)
  np.testing.assert_array_equal(decide(cfg).weights_NE(), jax.nn.relu(LOGIT_NE))
  want_NE = jnp.where(LOGIT_NE > 0, towards_E, 0)
  np.testing.assert_array_equal(jax.grad(loss)(LOGIT_NE), want_NE)


def test_without_bias_biased_topk_is_softmax_top_k():
  plan, want = (
    decide(biased_topk.Config(k=3)),
    decide(topk.Config(k=3, renormalise=False)),
  )
  np.testing.assert_array_equal(plan.expert_NK, want.expert_NK)
  np.testing.assert_array_equal(plan.gate_NK, want.gate_NK)


def test_the_bias_chooses_and_has_no_part_in_gates_or_gradients():
  cfg = biased_topk.Config(k=2, scale=6.0)
  state = {"bias_U": jnp.where(jnp.arange(E) < 2, 9.0, 0.0)}

  def total(logit_NE, state):
    weight_NE = decide(cfg, logit_NE, state).weights_NE()
    return jnp.sum(weight_NE), weight_NE

  run = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
  (_, weight_NE), (grad_NE, grad_state) = run(LOGIT_NE, state)
  want_NE = jnp.where(jnp.arange(E)[None] < 2, 6 * jax.nn.softmax(LOGIT_NE), 0)
  np.testing.assert_allclose(weight_NE, want_NE, rtol=1e-6)
  np.testing.assert_array_equal(grad_state["bias_U"], 0)
  assert float(jnp.abs(grad_NE).max()) > 0


WIDTH, REAL = 6, 3


@functools.cache
def layer(**fields):
  """(apply, variables) of a MoE layer of three experts."""
  cfg = moe.Config(dispatch=sort.Config(), num_experts=REAL, hidden=4, **fields)
  x_ND = drawn.normal(1, N, WIDTH)
  ctx = RouterInputs(seq_len=N)
  variables = drawn.variables(moe.Layer(cfg), x_ND, ctx)
  return jax.jit(lambda variables: moe.Layer(cfg).apply(variables, x_ND, ctx)), variables, x_ND


def test_a_token_of_identities_is_itself_times_its_gates_and_no_expert_works():
  """LongCat-Flash: a bias that only identity ids can win."""
  cfg = biased_topk.Config(k=2, scale=6.0)
  run, variables, x_ND = layer(router=cfg, virtual=("identity",) * 2)
  bias_U = jnp.where(jnp.arange(REAL + 2) < REAL, 0.0, 9.0)
  variables = {**variables, "router_state": {"router": {"bias_U": bias_U}}}
  y_ND, sums, _ = run(variables)
  gates = variables["params"]["router"]
  logit_NU = x_ND @ jnp.concatenate([gates["gate_DE"], gates["gate_DZ"]], axis=1)
  share_N = jax.nn.softmax(logit_NU)[:, REAL:].sum(1)
  np.testing.assert_allclose(y_ND, 6 * share_N[:, None] * x_ND, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(sums["count_U"], [0, 0, 0, N, N])


UNI = top_p.Config(k=4, threshold=0.7, renormalise=True)


def test_routed_null_and_shared_weights_are_one_softmax_over_what_is_used():
  """Uni-MoE-2.0: unselected ids at minus infinity, the shared expert among the others."""
  own_N1 = drawn.normal(2, N, 1)
  plan = decide(UNI)
  p_N1 = shared.chosen(LOGIT_NE, plan, own_N1)
  weight_NE = (1 - p_N1) * plan.weights_NE()
  np.testing.assert_allclose(weight_NE.sum(1) + p_N1[:, 0], 1, rtol=1e-6)
  used_NE, order_NK = np.zeros((N, E), bool), np.argsort(-LOGIT_NE, axis=1)[:, :4]
  np.put_along_axis(used_NE, order_NK, np.asarray(plan.expert_NK) >= 0, axis=1)
  all_NE = jnp.concatenate([jnp.where(used_NE, LOGIT_NE, -jnp.inf), own_N1], axis=1)
  want_NE = jax.nn.softmax(all_NE)
  np.testing.assert_allclose(weight_NE, want_NE[:, :E], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(p_N1, want_NE[:, E:], rtol=1e-5)


def test_without_null_or_shared_experts_it_is_top_p_over_its_sum():
  raw_NE = gathering(0.7).weights_NE()
  got_NE = gathering(0.7, renormalise=True).weights_NE()
  np.testing.assert_allclose(got_NE, raw_NE / raw_NE.sum(1, keepdims=True), rtol=1e-6)


def test_gates_among_rivals_are_even_where_nothing_is_near_and_draws_without_return_where_all_is():
  even_NE = gathering(0.7, near=0.0).weights_NE()
  count_N1 = choices(gathering(0.7))[:, None]
  np.testing.assert_allclose(even_NE, (gathering(0.7).weights_NE() > 0) / count_N1, rtol=1e-5)
  plan = gathering(0.7)
  gate_NK = np.asarray(top_p.among_rivals(LOGIT_NE, plan.expert_NK, 1e9))
  prob_NK = np.asarray(plan.gate_NK)  # of each choice, among what the choices before it left
  before_NK = np.cumsum(prob_NK, axis=1) - prob_NK
  np.testing.assert_allclose(gate_NK, prob_NK / (1 - before_NK), rtol=1e-4)
  total = lambda logit_NE: top_p.among_rivals(logit_NE, plan.expert_NK, 0.5).sum()
  assert np.all(np.isfinite(jax.grad(total)(LOGIT_NE)))


def test_the_shared_gate_has_finite_gradients_where_a_token_chose_nothing():
  expert_NK = jnp.where(jnp.arange(N)[:, None] % 2 == 0, decide(UNI).expert_NK, -1)
  plan = TokenPlan(expert_NK, jnp.ones(expert_NK.shape), E)
  total = lambda logit_NE, own_N1: shared.chosen(logit_NE, plan, own_N1).sum()
  grads = jax.grad(total, argnums=(0, 1))(LOGIT_NE, jnp.zeros((N, 1)))
  assert all(np.all(np.isfinite(grad)) for grad in grads)
  np.testing.assert_array_equal(grads[0][1::2], 0)


def test_a_token_of_nulls_has_the_shared_expert_alone():
  run, variables, x_ND = layer(
    router=top_p.Config(k=1, threshold=0.0, renormalise=True),
    virtual=("zero",),
    shared=shared.Config(hidden=4, gate="chosen"),
  )
  y_ND, sums, _ = run(variables)
  params = variables["params"]
  gates = params["router"]
  logit_NU = x_ND @ jnp.concatenate([gates["gate_DE"], gates["gate_DZ"]], axis=1)
  null_N = np.asarray(logit_NU.argmax(1) == REAL)
  assert 0 < null_N.sum() < N and float(sums["count_U"][REAL]) == null_N.sum()
  own_N = x_ND @ params["shared"]["gate_DG"][:, 0]
  p_N = jax.nn.sigmoid(own_N - logit_NU.max(1))
  own = {"params": params["shared"]["mlp"]}
  alone_ND = mlp.Layer(mlp.Config(4)).apply(own, x_ND, RouterInputs())[0]
  want_ND = p_N[:, None] * alone_ND
  np.testing.assert_allclose(y_ND[null_N], want_ND[null_N], rtol=1e-4, atol=1e-6)
  assert float(np.abs(y_ND - want_ND)[~null_N].max()) > 1e-4


def test_a_shared_gate_over_the_chosen_needs_tokens_that_choose():
  with pytest.raises(Wrong, match="gate 'chosen' needs a router whose tokens choose"):
    shared.chosen(LOGIT_NE, None, jnp.zeros((N, 1)))


def test_a_threshold_below_zero_is_refused():
  with pytest.raises(Wrong, match="top_p: threshold is -0.1"):
    top_p.Config(threshold=-0.1)
  with pytest.raises(Wrong, match="top_p: near is -1.0; it is a distance"):
    top_p.Config(near=-1.0)
