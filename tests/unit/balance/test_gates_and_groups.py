"""Importance, load, device groups and entropy: where each is something known."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.balance import entropy, expert_groups, importance, load, switch
from moejax.core import routing
from moejax.core.plan import ExpertPlan, RouterInputs, TokenPlan
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.routers import noisy_topk

N, D, E, K = 32, 6, 8, 2
LOGIT_NE = 2 * drawn.normal(0, N, E)
INPUTS = RouterInputs(num_experts=E)


def plan_of(logit_NE, k=K, virtual=()):
  expert_NK = routing.top_k(logit_NE, k)
  gate_NK = jax.nn.softmax(routing.take(logit_NE, expert_NK))
  return TokenPlan(expert_NK, gate_NK, E, virtual)


def value(rule, cfg, logit_NE=LOGIT_NE, inputs=INPUTS, k=K):
  """The loss of a stack of one layer."""
  plan = plan_of(logit_NE, k, inputs.virtual)
  own = {"count_U": plan.count_U(), "tokens": jnp.float32(len(logit_NE))}
  seen = rule.observe(plan, logit_NE, inputs, cfg)
  return rule.loss(jax.tree.map(lambda a: a[None], own | seen), {}, cfg)


# -- importance and load ---------------------------------------------------------------------------


def test_importance_is_what_the_gates_of_the_plan_add_up_to():
  seen = importance.observe(
    plan_of(LOGIT_NE), LOGIT_NE, INPUTS, importance.Config(softmax="chosen")
  )
  np.testing.assert_allclose(seen["importance_U"], plan_of(LOGIT_NE).weights_NE().sum(0), rtol=1e-5)


def smooth(threshold, logit_NE=LOGIT_NE, k=K, **fields):
  cfg = load.Config(threshold=threshold)
  return load.observe(plan_of(logit_NE, k), logit_NE, INPUTS.replace(**fields), cfg)["load_U"]


def test_without_noise_the_smooth_load_is_the_load():
  quiet = {"noise_NU": jnp.full((N, E), 1e-6), "clean_NU": LOGIT_NE}
  np.testing.assert_array_equal(smooth("others", extras=quiet), plan_of(LOGIT_NE).count_U())


def test_all_experts_chosen_is_certain():
  np.testing.assert_array_equal(smooth("others", k=E), N)


def test_fewer_active_choices_move_the_threshold():
  for threshold in ("others", "all"):
    few = smooth(threshold, knobs={"k_active": jnp.int32(1)})
    np.testing.assert_allclose(few, smooth(threshold, k=1), rtol=1e-6)


def test_the_probability_is_that_of_drawing_the_noise_of_one_id_again():
  """Of one token, id by id, the other ids keeping the noise that they had."""
  draws, draw = 20_000, np.random.default_rng(0)
  clean_U, noise_U = draw.normal(size=E), draw.uniform(0.5, 1.5, E)
  noisy_U = clean_U + noise_U * draw.normal(size=E)
  extras = {"clean_NU": jnp.array(clean_U)[None], "noise_NU": jnp.array(noise_U)[None]}
  got_U = smooth("others", jnp.array(noisy_U, jnp.float32)[None], extras=extras)
  for e in range(E):
    again = np.tile(noisy_U, (draws, 1))
    again[:, e] = clean_U[e] + noise_U[e] * draw.normal(size=draws)
    p = float(got_U[e])
    chosen = np.mean(again[:, e] > np.sort(np.delete(noisy_U, e))[-K])
    assert abs(chosen - p) <= 4 * np.sqrt(p * (1 - p) / draws), e


def test_learned_noise_learns_from_the_load():
  router = noisy_topk.Router(noisy_topk.Config())
  inputs = INPUTS.replace(x_ND=drawn.normal(1, N, D), key=jax.random.key(0))
  variables = drawn.variables(router, inputs)

  @jax.jit
  def grads(variables):
    def loss(variables):
      logit_NE, out = router.apply(variables, inputs)
      seen = load.observe(moe.decide(logit_NE, out, router.cfg), logit_NE, out, load.Config())
      return load.loss(seen, {}, load.Config())

    return jax.grad(loss)(variables)["params"]

  for name, grad in grads(variables).items():
    assert float(jnp.abs(grad).max()) > 0, name


# -- device groups ---------------------------------------------------------------------------------


def test_groups_of_one_expert_are_the_expert_loss():
  got = value(expert_groups, expert_groups.Config(groups=E))
  np.testing.assert_allclose(got, value(switch, switch.Config()), rtol=1e-5)


def test_one_group_is_always_even_and_teaches_nothing():
  loss = lambda logit_NE: value(expert_groups, expert_groups.Config(groups=1), logit_NE)
  got, grad_NE = jax.value_and_grad(loss)(LOGIT_NE)
  np.testing.assert_allclose(got, 1, rtol=1e-6)
  np.testing.assert_allclose(grad_NE, 0, atol=1e-7)


def test_at_its_targets_it_is_one_whatever_the_probabilities():
  """Two groups of experts with 1.5 choices a token, and 0.5 for the virtual ids."""
  cfg, virtual = expert_groups.Config(groups=2, experts_per_token=1.5), ("zero", "identity")
  expert_NK = jnp.array([[0, 4], [1, 5], [2, 8], [7, 9]])
  plan = TokenPlan(expert_NK, jnp.ones((4, 2)), E, virtual)
  inputs = RouterInputs(num_experts=E, virtual=virtual)
  seen = expert_groups.observe(plan, 3 * drawn.normal(2, 4, E + 2), inputs, cfg)
  sums_L = jax.tree.map(lambda a: a[None], {**seen, "tokens": jnp.float32(4)})
  np.testing.assert_allclose(expert_groups.loss(sums_L, {}, cfg), 1, rtol=1e-5)


@pytest.mark.parametrize(
  "virtual, fields, sentence",
  [
    ((), {"groups": 3}, "8 experts cannot form 3 equal groups"),
    ((), {"experts_per_token": 1.5}, "without them it must be None"),
    (("zero",), {}, "with virtual ids it must be given"),
    (("zero",), {"experts_per_token": 2.0}, "is 2.0 with k=2 choices and 1 virtual ids"),
  ],
)
def test_groups_and_targets_that_cannot_be_are_refused(virtual, fields, sentence):
  plan = plan_of(LOGIT_NE, virtual=virtual)
  inputs = RouterInputs(num_experts=E, virtual=virtual)
  with pytest.raises(Wrong, match=sentence):
    expert_groups.observe(plan, LOGIT_NE, inputs, expert_groups.Config(**fields))


@pytest.mark.parametrize("rule", [load, expert_groups])
def test_a_plan_by_experts_has_no_choices_to_balance(rule):
  plan = ExpertPlan(jnp.zeros((E, 1), int), jnp.ones((E, 1)), N)
  with pytest.raises(Wrong, match="take the entry out"):
    rule.observe(plan, LOGIT_NE, INPUTS, rule.Config())


# -- entropy ---------------------------------------------------------------------------------------


def test_a_step_against_the_entropy_makes_the_router_surer():
  loss = lambda logit_NE: value(entropy, entropy.Config(), logit_NE)
  before, grad_NE = jax.value_and_grad(loss)(LOGIT_NE)
  assert loss(LOGIT_NE - N * grad_NE) < before
  np.testing.assert_allclose(loss(jnp.zeros((N, E))), np.log(E), rtol=1e-6)
