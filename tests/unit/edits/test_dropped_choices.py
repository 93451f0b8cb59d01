"""Second experts by chance, small gates, tokens in the order of their gates: who stays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from moejax.core.plan import RouterInputs, TokenPlan
from moejax.core.plugin import Wrong
from moejax.edits import capacity, renormalise, second_expert, skip

N, K, E = 24, 2, 4


def plan_of(gate_NK, seed=0):
  """Different random experts for each token, with these gates."""
  draw = np.random.default_rng(seed)
  expert_NK = np.argsort(draw.uniform(size=(len(gate_NK), E)))[:, : gate_NK.shape[1]]
  return TokenPlan(jnp.asarray(expert_NK, jnp.int32), jnp.asarray(gate_NK, jnp.float32), E)


def two_gates(second_N, scale=1.0):
  return scale * np.stack([1 - np.asarray(second_N), second_N], axis=1)


# -- second expert ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_second_experts_stay_with_twice_their_part_of_the_gates(scale):
  """With or without renormalised gates; one draw per token."""
  tokens, second = 4000, (0.0, 0.1, 0.25, 0.5)
  plan = plan_of(two_gates(np.repeat(second, tokens), scale))
  inputs = RouterInputs(key=jax.random.key(1))
  edited, sums = second_expert.edit(plan, None, inputs, second_expert.Config())
  kept = np.asarray(edited.expert_NK[:, 1] >= 0).reshape(len(second), tokens).mean(1)
  for share, w in zip(kept, second, strict=True):
    p = min(1, 2 * w)
    assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / tokens), (w, share)
  np.testing.assert_array_equal(edited.expert_NK[:, 0], plan.expert_NK[:, 0])
  np.testing.assert_array_equal(edited.gate_NK, plan.gate_NK)
  assert int(sums["choices"]) == len(plan.expert_NK)
  assert int(sums["dropped"]) == np.sum(np.asarray(edited.expert_NK) < 0)


def test_without_a_key_all_second_experts_stay():
  plan = plan_of(two_gates(np.full(N, 0.01)))
  edited, sums = second_expert.edit(plan, None, RouterInputs(), second_expert.Config())
  np.testing.assert_array_equal(edited.expert_NK, plan.expert_NK)
  assert int(sums["dropped"]) == 0


def test_keeping_no_second_expert_is_refused():
  with pytest.raises(Wrong, match="factor 0 keeps no second choice"):
    second_expert.Config(factor=0)


# -- skip ------------------------------------------------------------------------------------------


def skipped(plan, beta, **knobs):
  return skip.edit(plan, None, RouterInputs(knobs=knobs), skip.Config(beta))


def test_the_median_ratio_skips_half_of_the_second_experts():
  gate_NK = two_gates(np.random.default_rng(0).uniform(0.01, 0.5, 101))
  plan = plan_of(gate_NK)
  beta = float(np.median(gate_NK[:, 1] / gate_NK[:, 0]))
  assert abs(int(skipped(plan, beta)[1]["skipped"]) - 50) <= 1


def test_no_threshold_is_no_edit_and_the_highest_leaves_one_expert():
  plan = plans.token_plan(np.argsort(np.random.default_rng(0).uniform(size=(N, E)))[:, :3])
  np.testing.assert_array_equal(skipped(plan, 0.0)[0].expert_NK, plan.expert_NK)
  edited, sums = skipped(plan, 1.0)
  first_N = jnp.take_along_axis(plan.expert_NK, plan.gate_NK.argmax(1)[:, None], axis=1)[:, 0]
  np.testing.assert_array_equal(edited.expert_NK.max(1), first_N)
  assert int(sums["choices"]) == int(sums["skipped"]) == 2 * N
  mended, _ = renormalise.edit(edited, None, None, renormalise.Config())
  np.testing.assert_allclose(mended.weights_NE().sum(1), plan.gate_NK.sum(1), rtol=1e-6)


def test_the_threshold_is_a_knob_that_is_traced():
  plan = plan_of(two_gates(np.random.default_rng(0).uniform(0.01, 0.5, N)))
  count = jax.jit(lambda beta: skipped(plan, 0.9, skip_beta=beta)[1]["skipped"])
  for beta in (0.0, 0.3, 1.0):
    assert int(count(beta)) == int(skipped(plan, beta)[1]["skipped"])
  with pytest.raises(Wrong, match=r"beta 1.5 is not within \[0, 1\]"):
    skip.Config(1.5)


# -- batch priority --------------------------------------------------------------------------------


def kept(plan, order, factor):
  inputs = RouterInputs(groups=1)
  return np.asarray(capacity.edit(plan, None, inputs, capacity.Config(factor, order))[0].expert_NK)


GATES = np.random.default_rng(1).dirichlet(np.ones(K), N)
SORTED = plan_of(-np.sort(-GATES, axis=1))


def test_batch_priority_with_room_for_all_is_no_other_order():
  np.testing.assert_array_equal(
    kept(SORTED, "token_gate", E / K), kept(SORTED, "choice_major", E / K)
  )
  assert not np.array_equal(kept(SORTED, "token_gate", 0.5), kept(SORTED, "choice_major", 0.5))


def test_batch_priority_does_not_depend_on_where_a_token_stands():
  order = np.random.default_rng(2).permutation(N)
  moved = SORTED.replace(expert_NK=SORTED.expert_NK[order], gate_NK=SORTED.gate_NK[order])
  same = lambda how: np.array_equal(kept(moved, how, 0.5), kept(SORTED, how, 0.5)[order])
  assert same("token_gate") and not same("choice_major")


def test_first_choices_come_before_second_ones_and_sure_tokens_before_others():
  """Room for two: tokens 2 and 1 are surer than 0; second choices wait for all first ones."""
  expert_NK, gate_NK = (
    [[0, 1], [0, 1], [0, 2], [1, 0]],
    [[0.5, 0.4], [0.6, 0.3], [0.7, 0.1], [0.9, 0]],
  )
  plan = TokenPlan(jnp.array(expert_NK), jnp.array(gate_NK), num_experts=4)
  assert kept(plan, "token_gate", 1.0).tolist() == [[-1, -1], [0, 1], [0, 2], [1, -1]]
