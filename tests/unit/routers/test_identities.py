"""Limits in which a router is another one, and what only one router has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import rng
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.routers import expert_choice, sigmoid_topk, topk

N, D, E = 64, 8, 8
LOGIT_NE = 2 * jax.random.normal(jax.random.key(0), (N, E))
STATE = {"bias_U": jnp.zeros(E)}


def decide(cfg, state=STATE, logit_NE=LOGIT_NE, **fields):
  return moe.decide(logit_NE, RouterInputs(num_experts=E, state=state, **fields), cfg)


def test_mixtral_order_is_softmax_over_the_chosen():
  """Softmax over all, choose, renormalise = choose, softmax over the chosen; gradients too."""

  def loss(logit_NE, cfg):
    gate_NK = decide(cfg, logit_NE=logit_NE).gate_NK
    return jnp.sum(jnp.sin(gate_NK * jnp.arange(1.0, 4.0)[None])), gate_NK

  run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  assert_close(run(LOGIT_NE, topk.Config(k=3)), run(LOGIT_NE, topk.Config(k=3, softmax="chosen")))


def test_the_scale_is_the_sum_of_renormalised_gates_and_falls_short_without():
  total = lambda **fields: decide(topk.Config(k=3, scale=2.5, **fields)).gate_NK.sum(1)
  np.testing.assert_allclose(total(), 2.5, rtol=1e-6)
  np.testing.assert_allclose(total(softmax="chosen"), 2.5, rtol=1e-6)
  assert np.all(total(renormalise=False) < 2.5)
  gate_NK = decide(sigmoid_topk.Config(k=3, scale=2.5)).gate_NK
  np.testing.assert_allclose(gate_NK.sum(1), 2.5, rtol=1e-6)


def test_all_experts_at_capacity_are_the_dense_mixture():
  """Top-k with k = E, and expert choice with room for all tokens: the softmax itself."""
  want_NE = jax.nn.softmax(LOGIT_NE)
  for cfg in (topk.Config(k=E, renormalise=False), expert_choice.Config(float(E))):
    np.testing.assert_allclose(decide(cfg).weights_NE(), want_NE, rtol=1e-6)


def chosen(cfg, state=STATE):
  return np.sort(decide(cfg, state).expert_NK, axis=1)


def test_an_equal_bias_changes_nothing_with_groups_or_without():
  shifted = {"bias_U": jnp.full(E, 0.7)}
  for cfg in (sigmoid_topk.Config(k=2), sigmoid_topk.Config(k=4, groups=4, groups_kept=2)):
    np.testing.assert_array_equal(chosen(cfg, shifted), chosen(cfg))


def test_without_bias_or_limit_it_is_sigmoid_top_k():
  np.testing.assert_array_equal(
    chosen(sigmoid_topk.Config(k=2)), np.sort(jax.lax.top_k(LOGIT_NE, 2)[1], axis=1)
  )
  # all groups kept: every one of them may provide, which is no limit
  kept = sigmoid_topk.Config(k=4, groups=4, groups_kept=4)
  np.testing.assert_array_equal(chosen(kept), chosen(sigmoid_topk.Config(k=4)))


def test_a_group_limit_holds_also_where_scores_are_negative():
  """Scores below zero must not lose against the zeros of groups that were left out."""
  cfg, low = sigmoid_topk.Config(k=2, groups=4, groups_kept=1), {"bias_U": jnp.full(E, -5.0)}
  np.testing.assert_array_equal(chosen(cfg, low), chosen(cfg))
  assert all(len(set(row // 2)) == 1 for row in chosen(cfg))


def test_the_selection_bias_tilts_the_choice_and_not_the_gates():
  tilted = {"bias_U": jnp.where(jnp.arange(E) < 2, 9.0, 0.0)}
  plan = decide(sigmoid_topk.Config(k=2, renormalise=False), tilted)
  assert set(np.asarray(plan.expert_NK).ravel()) == {0, 1}
  want_NE = jnp.where(jnp.arange(E)[None] < 2, jax.nn.sigmoid(LOGIT_NE), 0)
  np.testing.assert_allclose(plan.weights_NE(), want_NE, rtol=1e-6)


@pytest.mark.parametrize("fields", [{"groups": 2, "groups_kept": 3}, {"k": 3, "groups_kept": 2}])
def test_group_limits_that_cannot_be_are_refused(fields):
  with pytest.raises(Wrong, match="sigmoid_topk: groups_kept . of . groups cannot share"):
    sigmoid_topk.Config(**fields)
  with pytest.raises(Wrong, match="8 ids cannot form 3 groups"):
    decide(sigmoid_topk.Config(k=2, groups=3, groups_kept=1))


def test_jitter_is_drawn_in_training_only_and_moves_the_input_by_no_more_than_it_says():
  cfg, inputs = topk.Config(jitter=0.1), RouterInputs(x_ND=jnp.ones((N, D)), num_experts=E)
  variables = jax.jit(topk.Router(cfg).init)(jax.random.key(0), inputs)
  logits = jax.jit(lambda inputs: topk.Router(cfg).apply(variables, inputs)[0])
  key = jax.random.key(1)
  clean_NE, noisy_NE = logits(inputs), logits(inputs.replace(key=key))
  np.testing.assert_array_equal(logits(inputs.replace(key=key)), noisy_NE)
  assert np.abs(logits(inputs.replace(key=rng.stream(key, "other"))) - noisy_NE).max() > 1e-3
  bound_E = 0.1 * np.abs(variables["params"]["gate_DE"]).sum(0)
  moved_NE = np.abs(noisy_NE - clean_NE)
  assert moved_NE.max() > 1e-3 and np.all(moved_NE <= bound_E[None] + 1e-6)
  with pytest.raises(Wrong, match=r"jitter 1.5 is not within \[0, 1\)"):
    topk.Config(jitter=1.5)


def test_expert_choice_fills_every_slot_and_refuses_less_than_one():
  plan = decide(expert_choice.Config(2.0), groups=4)
  np.testing.assert_array_equal(plan.count_U(), np.full(E, 2 * N / E))
  with pytest.raises(Wrong, match="slots per expert are not within"):
    decide(expert_choice.Config(0.1), groups=16)


def test_what_experts_took_can_be_forced_on_other_logits():
  """All tokens forced: the same plan with the gates of the new logits, and their gradient."""
  cfg, other_NE = expert_choice.Config(2.0), LOGIT_NE[::-1]
  theirs_NE = decide(cfg, groups=4).taken_NE()
  taken_NK = decide(cfg, groups=4).taken_NK()

  def loss(logit_NE, forced_NK, **gates):
    plan = decide(cfg, logit_NE=logit_NE, groups=4, forced_NK=forced_NK, **gates)
    return jnp.sum(jnp.sin(plan.weights_NE())), plan

  def want(logit_NE):
    return jnp.sum(jnp.sin(jnp.where(theirs_NE, jax.nn.softmax(logit_NE), 0)))

  grads, plan = jax.jit(jax.grad(loss, has_aux=True))(other_NE, taken_NK)
  np.testing.assert_array_equal(plan.taken_NE(), theirs_NE)
  assert np.any(decide(cfg, logit_NE=other_NE, groups=4).taken_NE() != theirs_NE)
  assert_close(grads, jax.grad(want)(other_NE))
  wide_NK = jnp.pad(taken_NK, ((0, 0), (0, 3)), constant_values=-2)  # another layer has more
  np.testing.assert_array_equal(loss(other_NE, wide_NK)[1].taken_NE(), theirs_NE)
  free_NK = jnp.full_like(taken_NK, -2)
  assert_close(loss(other_NE, free_NK)[1], decide(cfg, logit_NE=other_NE, groups=4))

  gates = {"forced_gate_NK": 7 * jnp.ones((N, E))}
  np.testing.assert_array_equal(
    loss(other_NE, taken_NK, **gates)[1].weights_NE(), np.where(theirs_NE, 7.0, 0)
  )


def test_some_forced_tokens_leave_experts_the_other_slots():
  """The least wanted token is for expert 3 alone, the most wanted one for none; others compete."""
  cfg = expert_choice.Config(2.0)  # 2 * 16 / 8 slots of each expert
  last, first = int(LOGIT_NE[:16, 3].argmin()), 16 + int(LOGIT_NE[16:32, 0].argmax())
  forced_NK = jnp.full((N, 2), -2).at[last].set(jnp.array([3, -1])).at[first].set(-1)
  taken_NE = np.asarray(decide(cfg, groups=4, forced_NK=forced_NK).taken_NE())
  prob_NE = np.asarray(jax.nn.softmax(LOGIT_NE))
  rank_NE = prob_NE.copy()
  rank_NE[[last, first]], rank_NE[last, 3] = -1, 2
  for g in range(4):
    rows = slice(16 * g, 16 * g + 16)
    cut_E = np.sort(rank_NE[rows], axis=0)[-4]
    np.testing.assert_array_equal(taken_NE[rows], rank_NE[rows] >= cut_E)
  assert taken_NE[last].tolist() == [e == 3 for e in range(E)] and not taken_NE[first].any()
  free_NE = decide(cfg, groups=4).taken_NE()
  assert not free_NE[last, 3] and free_NE[first].any()


def test_an_expert_takes_no_more_forced_tokens_than_it_has_slots():
  cfg, all_NK = expert_choice.Config(2.0), jnp.zeros((N, 1), jnp.int32)
  taken_NE = decide(cfg, groups=4, forced_NK=all_NK).taken_NE()
  assert taken_NE[:, 0].sum() == 16 and not taken_NE[:, 1:].any()
  best_NE = decide(cfg, groups=4).taken_NE()
  np.testing.assert_array_equal(taken_NE[:, 0], best_NE[:, 0])


def test_linear_logits_of_virtual_ids_stand_behind_those_of_experts():
  inputs = RouterInputs(x_ND=jnp.ones((2, D)), num_experts=E, virtual=("zero", "identity"))
  variables = jax.jit(topk.Router(topk.Config()).init)(jax.random.key(0), inputs)
  shapes = {name: leaf.shape for name, leaf in variables["params"].items()}
  assert shapes == {"gate_DE": (D, E), "gate_DZ": (D, 2)}
  logit_NU = jax.jit(topk.Router(topk.Config()).apply)(variables, inputs)[0]
  np.testing.assert_allclose(logit_NU[0, E:], variables["params"]["gate_DZ"].sum(0), rtol=1e-5)
