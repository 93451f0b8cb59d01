"""A placement changes where experts are, never what they compute or learn."""

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from close import assert_close

from moejax.core.plugin import Wrong
from moejax.dispatch import sort
from moejax.layers import experts
from moejax.optim import adamw
from moejax.train import placement

E, S, LOAD = plans.E, 6, np.array([9.0, 1.0, 4.0, 2.0])


@pytest.fixture(scope="module")
def layer():
  """grads(slot_ER, params [S, ...]) -> (loss, gradients of x and of the slots), compiled once."""
  plan, (x_ND, params) = plans.battery()["spread"].replace(slot_NK=None), plans.arguments()

  @jax.jit
  def grads(slot_ER, params, x_ND):
    def loss(x_ND, params):
      y_ND, _ = sort.run(plan.placed(slot_ER, S), x_ND, experts.gated(params), None)
      return jnp.sum(jnp.sin(y_ND))

    return jax.value_and_grad(loss, (0, 1))(x_ND, params)

  whole = {name: jnp.pad(leaf, ((0, S - E), (0, 0), (0, 0))) for name, leaf in params.items()}
  return grads, x_ND, whole


def by_expert(tree, slot_ER):
  return jax.tree.map(lambda leaf: leaf[slot_ER[:, 0]], tree)


PLAIN = jnp.broadcast_to(jnp.arange(E)[:, None], (E, 2))
TABLES = {
  "permuted": jnp.array([[5, 5], [2, 2], [0, 0], [3, 3]]),
  "copies": jnp.asarray(placement.assigned(LOAD, owners=2, stored=S, copies=2)),
}


@pytest.mark.parametrize("name", TABLES)
def test_where_experts_are_changes_nothing(layer, name):
  grads, x_ND, params = layer
  (want, (dx_ND, dw)), new_ER = grads(PLAIN, params, x_ND), TABLES[name]
  there = placement.moved(params, PLAIN, new_ER)
  got, (got_dx_ND, got_dw) = grads(new_ER, there, x_ND)
  tied = placement.summed(got_dw, new_ER)
  assert_close((got, got_dx_ND), (want, dx_ND))
  assert_close(by_expert(tied, new_ER), by_expert(dw, PLAIN))
  norm = lambda tree: sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree))
  assert norm(tied) == pytest.approx(norm(placement.summed(dw, PLAIN)), rel=1e-5)


def test_copies_stay_equal_and_moments_move_with_their_expert(layer):
  """Two steps of AdamW, clipped, with a table that changes between them, as without any."""
  grads, x_ND, params = layer
  tx = adamw.make(adamw.Config(clip_norm=0.1), lambda step: 0.01, params)

  @jax.jit
  def step(params, state, slot_ER):
    _, (_, dw) = grads(slot_ER, params, x_ND)
    updates, state = tx.update(placement.summed(dw, slot_ER), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    state = state._replace(
      **{k: placement.copied(getattr(state, k), slot_ER) for k in ("mu", "nu")}
    )
    return placement.copied(params, slot_ER), state

  def run(tables):
    at, state, before = params, tx.init(params), PLAIN
    for slot_ER in tables:
      at = placement.moved(at, before, slot_ER)
      moments = {k: placement.moved(getattr(state, k), before, slot_ER) for k in ("mu", "nu")}
      at, state = step(at, state._replace(**moments), slot_ER)
      before = slot_ER
    for leaf in jax.tree.leaves(at):
      np.testing.assert_array_equal(leaf[before[:, 0]], leaf[before[:, 1]])
    return by_expert((at, state.mu, state.nu), before)

  assert_close(run([TABLES["copies"], TABLES["permuted"], TABLES["copies"]]), run([PLAIN] * 3))
  assert step._cache_size() == 1, "a new table is an argument, no new program"


def test_busy_experts_get_copies_and_owners_are_even():
  slot_ER = placement.assigned(LOAD, owners=2, stored=S, copies=2)
  copies_E = [len(set(row)) for row in slot_ER.tolist()]
  assert copies_E == [2, 1, 2, 1] and sorted({*slot_ER.ravel().tolist()}) == list(range(S))
  assert slot_ER[0, 0] // 3 != slot_ER[0, 1] // 3, "on two owners"
  even = placement.straggler(LOAD, slot_ER, 2, S)
  naive = placement.straggler(LOAD, np.arange(E)[:, None], 2, E)
  assert even < 1.1 < naive == pytest.approx(10 / 8)
  with pytest.raises(Wrong, match="4 experts with up to 2 copies cannot fill 9 slots of 3 owners"):
    placement.assigned(LOAD, owners=3, stored=9, copies=2)
