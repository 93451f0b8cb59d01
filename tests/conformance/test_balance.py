"""Every balance rule against its loop; new files are found by name."""

import functools

import fields
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from close import assert_close
from oracle.balance import Seen

from moejax.core import plugin, routing, sums
from moejax.core.plan import RouterInputs, TokenPlan

L, N, K, E = 2, 20, 2, 4
VIRTUAL = ("zero",)
U = SEQ_LEN = 5  # a sequence can give each id the same
GROUPS = 2
RULES = plugin.names("balance")
LOSSES = [name for name in RULES if hasattr(plugin.load("balance", name), "loss")]
CONTROLLERS = [name for name in RULES if name not in LOSSES]
CASES = [(name, i) for name in LOSSES for i in range(len(oracle.load("balance", name).CASES))]


def micro_batch(seed):
  """(logit_LNU, expert_LNK, valid_N): skewed, with padding and one sequence of nothing else."""
  draw = np.random.default_rng(seed)
  logit_LNU = draw.normal(size=(L, N, U)) + np.linspace(1, -1, U)
  noisy_LNU = logit_LNU + draw.normal(size=(L, N, U))
  valid_N = (np.arange(N) >= SEQ_LEN) & (np.arange(N) % 7 > 0)
  expert_LNK = np.where(valid_N[:, None], np.argsort(-noisy_LNU)[..., :K], -1)
  expert_LNK[:, 6, 1] = -1
  return logit_LNU.astype(np.float32), expert_LNK.astype(np.int32), valid_N


def as_loops(logit_LNU, expert_LNK, valid_N):
  """The same as one Seen per layer."""
  logit_LNU, expert_LNK = np.array(logit_LNU, np.float64), np.asarray(expert_LNK)
  layer = lambda i: Seen(logit_LNU[i], expert_LNK[i], np.asarray(valid_N), SEQ_LEN, GROUPS)
  return [layer(i) for i in range(L)]


def kept(rule, cfg, ids):
  """What a rule keeps of its own."""
  return rule.init_state(cfg, ids) if hasattr(rule, "init_state") else {}


def observe(cfg, logit_NU, expert_NK, valid_N, gate_NK=None):
  """The sums of one layer, as layers/moe.py collects them and the rule sees them."""
  gate_NK = jnp.ones(expert_NK.shape) if gate_NK is None else gate_NK
  groups = GROUPS * len(logit_NU) // N
  inputs = RouterInputs(
    valid_N=valid_N, seq_len=SEQ_LEN, groups=groups, num_experts=E, virtual=VIRTUAL,
    modality_N=jnp.arange(len(logit_NU)) // SEQ_LEN % 2,  # of sequences in turn
    state=kept(plugin.module(cfg), cfg, U), extras={"light_NU": logit_NU},  # a second router's
  )  # fmt: skip
  plan = TokenPlan(expert_NK, gate_NK, E, VIRTUAL)
  seen = plugin.module(cfg).observe(plan, logit_NU, inputs, cfg)
  return {"count_U": plan.count_U(), **routing.statistics(logit_NU, valid_N), **seen}


@functools.partial(jax.jit, static_argnums=0)
def value_and_grads(cfg, now, before):
  """(loss of a micro-batch that follows another, gradients to its logits and gates)."""

  def loss(logit_LNU, gate_LNK, now, before):
    each = jax.vmap(functools.partial(observe, cfg), in_axes=(0, 0, None, 0))
    none_LNK = jnp.ones(before[1].shape)
    past_L = {} if before is None else each(*before, none_LNK)
    return plugin.module(cfg).loss(each(logit_LNU, *now[1:], gate_LNK), past_L, cfg)

  return jax.value_and_grad(loss, argnums=(0, 1))(now[0], jnp.ones(now[1].shape), now, before)


def config(case):
  name, i = case
  return oracle.load("balance", name).CASES[i]


def loop(case, now, before):
  return oracle.load("balance", case[0]).loss(now, [before], config(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_loss_is_the_loop(case):
  now, before = micro_batch(0), micro_batch(1)
  value, _ = value_and_grads(config(case), now, before)
  np.testing.assert_allclose(value, loop(case, as_loops(*now), as_loops(*before)), rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_flows_through_the_logits_of_real_tokens_alone(case):
  """Against differences of the loop, with the choices held."""
  now, before = micro_batch(0), micro_batch(1)
  _, (grad_LNU, grad_LNK) = value_and_grads(config(case), now, before)
  np.testing.assert_array_equal(grad_LNK, 0)
  np.testing.assert_array_equal(np.asarray(grad_LNU)[:, ~np.asarray(now[2])], 0)
  plain, step = as_loops(*before), 1e-4
  for layer, n, e in [(0, 6, 0), (0, 8, 4), (1, 19, 2), (1, 13, 1)]:
    ends = []
    for sign in (1, -1):
      seen = as_loops(*now)
      seen[layer].logit_NU[n, e] += sign * step
      ends.append(loop(case, seen, plain))
    want = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(grad_LNU[layer, n, e], want, rtol=1e-3, atol=1e-6)


def alike(case, logit_NU, expert_NK):
  """The loss where both layers and micro-batches saw the same."""
  both = lambda a, kind: np.stack([a] * L).astype(kind)
  now = (both(logit_NU, np.float32), both(expert_NK, np.int32), np.ones(N, bool))
  return value_and_grads(config(case), now, now)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_value_at_an_even_load_is_the_documented_one(case):
  """Token n has the logits and choices of token 0, moved on by n ids; they are its k best."""
  n_N1 = np.arange(N)[:, None]
  logit_NU = U - 1 - (np.arange(U)[None] + n_N1) % U
  expert_NK = (np.arange(K)[None] - n_N1) % U
  got = alike(case, logit_NU, expert_NK)
  want = oracle.load("balance", case[0]).even(config(case), L, U, K)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-10)  # some are 0
  assert fields.need(plugin.load("balance", case[0]), "Value")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_value_at_collapse_is_the_documented_one(case):
  logit_NU = np.tile(np.where(np.arange(U) < K, 30.0, -30.0), (N, 1))
  got = alike(case, logit_NU, np.tile(np.arange(K), (N, 1)))
  want = oracle.load("balance", case[0]).collapsed(config(case), L, U, K)
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_of_micro_batches_add_up(case):
  """Two halves, cut where sequences and groups end, are the whole."""
  logit_LNU, expert_LNK, valid_N = micro_batch(0)
  seen = jax.jit(functools.partial(observe, config(case)))
  part = lambda at: seen(logit_LNU[0, at], expert_LNK[0, at], valid_N[at])
  halves = sums.add(part(slice(0, N // 2)), part(slice(N // 2, N)))
  assert_close(halves, part(slice(0, N)))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_is_the_loop_and_rests_at_an_even_load(name):
  rule, loops = plugin.load("balance", name), oracle.load("balance", name)
  bias_U, count_U = jnp.array([0.1, 0.0, -0.2, 0.3]), jnp.array([9.0, 3.0, 3.0, 1.0])
  sums = lambda count_U: {"count_U": count_U, **getattr(loops, "seen", lambda _: {})(count_U)}
  for cfg in loops.CASES:
    state = {"bias_U": bias_U, "other_U": bias_U, **kept(rule, cfg, 4)}
    new = rule.update({}, state, sums(count_U), {}, cfg)
    want_U = loops.update(np.asarray(bias_U), np.asarray(count_U), cfg)
    np.testing.assert_allclose(new["bias_U"], want_U, rtol=1e-6)
    np.testing.assert_array_equal(new["other_U"], bias_U)
    even = rule.update({}, state, sums(jnp.full(4, 4.0)), {}, cfg)
    np.testing.assert_allclose(even["bias_U"], bias_U, rtol=1e-6)
    still = rule.update({}, state, sums(count_U), {"bias_speed": jnp.float32(0)}, cfg)
    np.testing.assert_allclose(still["bias_U"], bias_U, rtol=1e-6)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_without_a_bias_to_move_is_refused(name):
  rule, loops = plugin.load("balance", name), oracle.load("balance", name)
  count_U = jnp.ones(4)
  sums = {"count_U": count_U, **getattr(loops, "seen", lambda _: {})(count_U)}
  with pytest.raises(plugin.Wrong, match=f"{name}: .*no bias to move; use"):
    rule.update({}, kept(rule, rule.Config(), 4), sums, {}, rule.Config())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_a_loss_or_a_controller_with_an_oracle(name):
  rule, loops = plugin.load("balance", name), oracle.load("balance", name)
  assert hasattr(rule, "loss") or hasattr(rule, "update")
  assert hasattr(rule, "loss") == hasattr(rule.Config(), "weight")
  assert hasattr(rule, "observe") or not hasattr(rule, "loss")
  assert hasattr(loops, "loss") == hasattr(rule, "loss") and loops.CASES
