"""Controllers of selection biases: where they come to rest, whom they move, what bounds them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax.balance import (
  adamw,
  pid,
  proportional,
  quantile,
  sign,
  sparsity,
  switch,
  top1,
  zero_mean,
)
from moejax.core import controllers, plugin
from moejax.core.plan import RouterInputs, TokenPlan
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.routers import biased_topk, sigmoid_topk

N, E, Z = 256, 6, 2
U, K = E + Z, 2
VIRTUAL = ("identity",) * Z
SKEW_U = jnp.linspace(0.7, -0.7, U)  # of the logits: without a controller the last ids get little
LOGIT_NU = jnp.asarray(np.random.default_rng(0).normal(size=(N, U)), jnp.float32) + SKEW_U[None]
EXPERT_U = jnp.asarray(np.arange(U) < E, jnp.float32)
RULES = {
  "sign": sign.Config(0.005),
  "zero_mean": zero_mean.Config(0.005),
  "proportional": proportional.Config(0.3),
  "adamw": adamw.Config(0.02),
  "pid": pid.Config(0.3),
  "quantile": quantile.Config(),
}


def start(rule, ids=U):
  module = plugin.module(rule)
  own = module.init_state(rule, ids) if hasattr(module, "init_state") else {}
  return {"bias_U": jnp.zeros(ids), **own}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def steered(rule, cfg, steps):
  """(state, counts) after steps in which the same tokens come again."""
  module = plugin.module(rule)

  def seen(state):
    inputs = RouterInputs(num_experts=E, virtual=VIRTUAL, state=state)
    plan = moe.decide(LOGIT_NU, inputs, cfg)
    more = module.observe(plan, LOGIT_NU, inputs, rule) if hasattr(module, "observe") else {}
    return {"count_U": plan.count_U(), "expert_U": EXPERT_U, **more}

  step = lambda _, state: module.update({}, state, seen(state), {}, rule)
  state = jax.lax.fori_loop(0, steps, step, start(rule))
  return state, seen(state)["count_U"]


def max_vio(count_U):
  return float(count_U.max() / count_U.mean() - 1)


@pytest.mark.parametrize("name", RULES)
def test_a_controller_evens_the_load_and_stays_there(name):
  rule, cfg = RULES[name], sigmoid_topk.Config(k=K)
  before, after = (steered(rule, cfg, steps)[1] for steps in (0, 120))
  assert max_vio(before) > 0.5 and max_vio(after) < 0.1
  np.testing.assert_array_equal(before.sum(), after.sum())


def test_quantiles_need_few_steps_where_signs_need_many():
  at = lambda name: max_vio(steered(RULES[name], sigmoid_topk.Config(k=K), 8)[1])
  assert at("quantile") < 0.1 < at("sign")


def test_sign_and_zero_mean_choose_alike_and_only_one_drifts():
  """An equal move of all biases changes no choice."""
  cfg = sigmoid_topk.Config(k=K)
  (_, count_U), (other, same_U) = (steered(RULES[n], cfg, 120) for n in ("sign", "zero_mean"))
  np.testing.assert_array_equal(count_U, same_U)
  np.testing.assert_allclose(other["bias_U"].mean(), 0, atol=1e-6)
  sums = {"count_U": jnp.array([5.0, 1.0, 1.0, 1.0])}
  one_U, other_U = (rule_moves(rule.Config(1.0), sums, 4) for rule in (sign, zero_mean))
  np.testing.assert_array_equal(one_U, [-1, 1, 1, 1])
  np.testing.assert_array_equal(other_U, one_U - 0.5)


@pytest.mark.parametrize("name", ["proportional", "pid", "quantile", "sign"])
def test_experts_get_their_share_of_the_choices_and_held_ids_keep_their_bias(name):
  """LongCat-Flash: K_e = 1.2 experts of K = 2 choices on average, virtual ids never moved."""
  aim = {"expert_share": 0.6, "virtual": "held"}
  aim |= {"score": "softmax"} if name == "quantile" else {}
  aim["speed"] = {"sign": 0.002, "quantile": 0.3}.get(name, 0.1)
  rule = type(RULES[name])(**aim)
  state, count_U = steered(rule, biased_topk.Config(k=K), 300)
  np.testing.assert_allclose(count_U[:E].sum() / N, 1.2, rtol=0.05)
  np.testing.assert_allclose(count_U[:E], 1.2 * N / E, rtol=0.2)
  np.testing.assert_array_equal(state["bias_U"][E:], 0)
  assert float(jnp.abs(state["bias_U"][:E]).min()) > 0


def test_targets_of_virtual_ids_can_be_met_by_moving_them():
  rule = proportional.Config(0.3, expert_share=0.5)
  _, count_U = steered(rule, sigmoid_topk.Config(k=K), 200)
  want_U = jnp.where(EXPERT_U > 0, 0.5 * K * N / E, 0.5 * K * N / Z)
  np.testing.assert_allclose(count_U, want_U, rtol=0.1)


def test_longcat_moves_sum_to_zero_over_experts_exactly_at_the_mean_it_wants():
  """16 experts, 8 identity ids, K = 6, K_e = 3: 0 where experts have half of it."""
  rule = proportional.Config(1.0, expert_share=3 / 6, virtual="held")
  expert_U = jnp.asarray(np.arange(24) < 16, jnp.float32)

  def moves(experts, others):
    draw = np.random.default_rng(0)
    count_U = np.concatenate([
      draw.multinomial(experts, np.full(16, 1 / 16)), draw.multinomial(others, np.full(8, 1 / 8))
    ])  # fmt: skip
    sums = {"count_U": jnp.asarray(count_U, jnp.float32), "expert_U": expert_U}
    return rule_moves(rule, sums, 24)

  at, above = moves(300, 300), moves(320, 280)
  np.testing.assert_allclose(at.sum(), 0, atol=1e-6)
  np.testing.assert_allclose(above.sum(), -20 / 600, rtol=1e-4)
  assert np.abs(at[:16]).max() > 1e-3
  np.testing.assert_array_equal(at[16:], 0)


def rule_moves(rule, sums, ids):
  return plugin.module(rule).update({}, start(rule, ids), sums, {}, rule)["bias_U"]


@pytest.mark.parametrize("name", RULES)
def test_a_target_load_is_a_fixed_point_with_virtual_ids_too(name):
  rule = type(RULES[name])(expert_share=0.75, virtual="held")
  count_U = jnp.full(U, 16.0)  # 6 of 8 ids have 0.75 of all choices
  sums = {"count_U": count_U, "expert_U": EXPERT_U}
  needs = jnp.where(jnp.array(quantile.EDGES)[:, None] < 0, 0.0, 16.0)
  sums["below_QU"] = needs + jnp.zeros((1, U))
  np.testing.assert_allclose(rule_moves(rule, sums, U), 0, atol=1e-7)


@pytest.mark.parametrize(
  ("rule", "bound"),
  [(pid.Config(0.5, limit=0.7), 0.7), (adamw.Config(0.1, weight_decay=2.0), 0.5 + 1e-3)],
)
def test_a_load_that_cannot_be_reached_does_not_wind_up_the_bias(rule, bound):
  """One id takes all choices whatever its bias; once it lets go, the bias comes back at once."""
  update = jax.jit(functools.partial(plugin.module(rule).update, cfg=rule))
  stuck, free = ({"count_U": jnp.array(c)} for c in ([8.0, 0.0], [0.0, 8.0]))
  state = start(rule, 2)
  for _ in range(60):
    state = update({}, state, stuck, {})
  worst = float(jnp.abs(state["bias_U"]).max())
  assert 0.5 * bound < worst <= bound
  for _ in range(12):
    state = update({}, state, free, {})
  assert float(state["bias_U"][0]) > -0.5 * bound
  runaway = start(proportional.Config(0.5), 2)
  for _ in range(60):
    runaway = proportional.update({}, runaway, stuck, {}, proportional.Config(0.5))
  assert float(jnp.abs(runaway["bias_U"]).max()) > 10 * bound


def test_adamw_is_that_of_optax():
  rule = adamw.Config(0.3, weight_decay=0.1)
  tx = optax.adamw(rule.speed, rule.b1, rule.b2, rule.eps, weight_decay=rule.weight_decay)
  draw, want_U = np.random.default_rng(0), jnp.zeros(4)
  state, opt_state = start(rule, 4), tx.init(want_U)
  for _ in range(5):
    count_U = jnp.asarray(draw.integers(1, 9, 4), jnp.float32)
    state = adamw.update({}, state, {"count_U": count_U}, {}, rule)
    grad_U = -controllers.error({"count_U": count_U}, rule)
    updates, opt_state = tx.update(grad_U, opt_state, want_U)
    want_U = optax.apply_updates(want_U, updates)
    np.testing.assert_allclose(state["bias_U"], want_U, rtol=1e-5)


def test_pid_with_its_integral_alone_is_the_proportional_rule():
  one, other = pid.Config(0.2, proportional=0.0, limit=9.0), proportional.Config(0.2)
  (a, _), (b, _) = (steered(rule, sigmoid_topk.Config(k=K), 10) for rule in (one, other))
  np.testing.assert_allclose(a["bias_U"], b["bias_U"], atol=1e-6)


def test_a_step_without_tokens_moves_nothing():
  for name, rule in RULES.items():
    sums = {"count_U": jnp.zeros(4), "below_QU": jnp.zeros((len(quantile.EDGES), 4))}
    np.testing.assert_array_equal(rule_moves(rule, sums, 4), 0, err_msg=name)


def test_the_need_of_a_token_is_what_flips_its_choice():
  """A bias just beyond the need chooses the id, one just short of it does not."""
  cfg = sigmoid_topk.Config(k=K)
  chosen = lambda bias_U: np.asarray(
    moe.decide(LOGIT_NU, RouterInputs(num_experts=U, state={"bias_U": bias_U}), cfg).count_U()
  )
  plan = moe.decide(LOGIT_NU, RouterInputs(num_experts=U, state={"bias_U": jnp.zeros(U)}), cfg)
  need_NU = quantile.needs(jax.nn.sigmoid(LOGIT_NU), plan.expert_NK)
  for e in (0, U - 1):
    for rise in (-0.125, -0.01, 0.01, 0.125):
      got = chosen(jnp.where(jnp.arange(U) == e, rise, 0.0))[e]
      assert got == int((need_NU[:, e] < rise).sum())


def test_quantile_counts_real_tokens_of_micro_batches_and_refuses_choosing_experts():
  rule, inputs = quantile.Config(), RouterInputs(num_experts=U, state={"bias_U": jnp.zeros(U)})
  plan = moe.decide(LOGIT_NU, inputs, sigmoid_topk.Config(k=K))
  seen = lambda at, valid_N=None: quantile.observe(
    TokenPlan(plan.expert_NK[at], plan.gate_NK[at], U), LOGIT_NU[at],
    inputs.replace(valid_N=valid_N), rule,
  )["below_QU"]  # fmt: skip
  whole_QU = seen(slice(None))
  parts_QU = seen(slice(0, 100)) + seen(slice(100, N))
  np.testing.assert_array_equal(whole_QU, parts_QU)
  np.testing.assert_array_equal(whole_QU[len(quantile.POWERS)], plan.count_U())
  np.testing.assert_array_equal(seen(slice(None), jnp.arange(N) < 100), seen(slice(0, 100)))
  with pytest.raises(Wrong, match="quantile: in the router's plan experts choose"):
    quantile.observe(None, LOGIT_NU, inputs, rule)


def loss_of(rule, logit_NU, expert_N1):
  """Of one layer in which each token chooses one id."""
  ids = logit_NU.shape[1]
  plan = TokenPlan(jnp.asarray(expert_N1), jnp.ones(expert_N1.shape), ids)
  module, inputs = plugin.module(rule), RouterInputs(num_experts=ids)
  sums = module.observe(plan, logit_NU, inputs, rule)
  sums |= {"count_U": plan.count_U(), "tokens": jnp.float32(len(logit_NU))}
  return float(module.loss(jax.tree.map(lambda leaf: leaf[None], sums), {}, rule))


def test_the_top_1_loss_sees_what_the_loss_of_switch_does_not():
  """Even and sure: 1; unsure, or all on one id: the number of ids. Switch's is 1 where unsure."""
  ids, n_N = 4, np.arange(32)
  even_NU = 200.0 * jax.nn.one_hot(n_N % ids, ids)
  unsure_NU, one_NU = jnp.zeros((32, ids)), 200.0 * jax.nn.one_hot(0 * n_N, ids)
  at = lambda rule, logit_NU, choice_N: loss_of(rule, logit_NU, choice_N[:, None].astype(np.int32))
  assert at(top1.Config(), even_NU, n_N % ids) == 1
  assert at(top1.Config(), unsure_NU, n_N % ids) == ids
  assert at(top1.Config(), one_NU, 0 * n_N) == ids
  for load_N in (n_N % ids, 0 * n_N, n_N % 2):  # any load at all
    assert at(switch.Config(), unsure_NU, load_N) == 1


def test_the_sparsity_coefficient_follows_the_mean_number_of_choices():
  rule = sparsity.Config(k=2.0, start=1.0, factor=1.5)
  state = sparsity.init_state(rule, 4)
  for count, want in ((30.0, 1.5), (30.0, 2.25), (20.0, 2.25), (10.0, 1.5)):
    sums = {"count_U": jnp.full(4, count / 4), "tokens": jnp.float32(10)}
    state = sparsity.update({}, state, sums, {}, rule)
    np.testing.assert_allclose(state["coefficient_G"], [want], rtol=1e-6)


@pytest.mark.parametrize(
  ("make", "sentence"),
  [
    (lambda: sign.Config(expert_share=1.5), "sign: expert_share is 1.5"),
    (lambda: pid.Config(limit=0.0), "pid: limit is 0.0"),
    (lambda: pid.Config(derivative=-1.0), "pid: .*gains are 1.0, 1.0 and -1.0"),
    (lambda: adamw.Config(b1=1.0), "adamw: b1 is 1.0"),
    (lambda: top1.Config(temperature=0.0), "top1: temperature is 0.0"),
    (lambda: sparsity.Config(factor=0.9), "sparsity: .*factor 0.9"),
  ],
)
def test_numbers_that_cannot_be_are_refused(make, sentence):
  with pytest.raises(Wrong, match=sentence):
    make()
