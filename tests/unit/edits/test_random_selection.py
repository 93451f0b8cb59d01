"""Random token selection (Z-code M3): who is dropped does not depend on where a token stands."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core.plan import RouterInputs, TokenPlan
from moejax.edits import capacity

N, E, C, DRAWS = 32, 4, 4, 400


def dropped(order, draws):
  """How often each of 32 tokens is dropped that all choose expert 2, which has 4 slots."""
  plan = TokenPlan(jnp.full((N, 1), 2), jnp.full((N, 1), 0.3), E)
  cfg = capacity.Config(C * E / N, order)

  def one(key):
    return capacity.edit(plan, None, RouterInputs(key=key), cfg)[0].expert_NK[:, 0] < 0

  keys = jax.random.split(jax.random.key(0), draws)
  return np.asarray(jax.jit(jax.vmap(one))(keys)).sum(0)


def test_drops_are_even_over_the_sequence():
  count_N = dropped("random", DRAWS)
  assert count_N.sum() == DRAWS * (N - C)
  share = (N - C) / N
  spread = DRAWS * share * (1 - share)
  chi2 = np.sum((count_N - DRAWS * share) ** 2) / spread * (N - 1) / N
  assert chi2 < 61.1  # 31 degrees of freedom, exceeded once in a thousand
  assert dropped("position", 1).tolist() == [0] * C + [1] * (N - C)


def test_with_room_for_all_it_is_plain_top_1():
  plan = TokenPlan(jnp.arange(N)[:, None] % E, jnp.full((N, 1), 0.3), E)
  inputs = RouterInputs(key=jax.random.key(1))
  edited, sums = capacity.edit(plan, None, inputs, capacity.Config(float(E), "random"))
  np.testing.assert_array_equal(edited.expert_NK, plan.expert_NK)
  assert int(sums["dropped"]) == 0
  weights = edited.slots().weights_NE()
  np.testing.assert_array_equal(weights, plan.weights_NE())
