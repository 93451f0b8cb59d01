"""Dispatch in two steps: the bits of the flat one, and the bytes that cross nodes, exactly."""

import itertools

import eight
import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from moejax.core import axes
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong
from moejax.dispatch import dedup
from moejax.perf import hlo

N, D, F, E, K, W = 64, 6, 8, 8, 3, 8


@pytest.fixture(scope="module")
def given():
  return eight.token_plan(N, E, K, factor=1.25), *plans.arguments(N, D, F, E)


@pytest.fixture(scope="module")
def flat(given):
  return eight.program("all_to_all", eight.mesh(expert=W), *given)[0]


@pytest.mark.parametrize("inner", [4, pytest.param(2, marks=pytest.mark.mesh)])
def test_hierarchical_is_flat_bit_for_bit_and_moves_what_the_formulas_say(given, flat, inner):
  program = eight.program("hierarchical", eight.mesh(expert=W), *given, inner=inner)[0]
  np.testing.assert_array_equal(program(*given)[0], flat(*given)[0])
  buffer, nodes = E * given[0].capacity / W * D * 4.0, W // inner  # bytes, of one device one way
  node_of = lambda device: device // inner
  ways = lambda program: [one for one in eight.moved(program) if one.kind == "all-to-all"]
  inside, between = hlo.sent(ways(program), node_of)
  assert between == hlo.sent(ways(flat), node_of)[1] == 2 * W * buffer * (1 - 1 / nodes)
  assert inside == 2 * W * buffer * (1 - 1 / inner)
  assert [(one.size, one.bytes) for one in ways(program)] == [
    (inner, buffer), (nodes, buffer), (inner, buffer), (nodes, buffer)
  ]  # fmt: skip
  assert [(one.size, one.bytes) for one in ways(flat)] == [(W, buffer)] * 2


@pytest.mark.mesh
def test_gradients_of_hierarchical_are_those_of_flat_bit_for_bit(given):
  mesh = eight.mesh(data=2, expert=4)
  flat = eight.outcome("all_to_all", mesh, *given, grad=True)
  got = eight.outcome("hierarchical", mesh, *given, grad=True, inner=2)
  same = lambda a, b: a.dtype == jax.dtypes.float0 or np.array_equal(a, b)
  assert all(jax.tree.leaves(jax.tree.map(same, got, flat)))


@pytest.mark.parametrize("inner", [4, pytest.param(2, marks=pytest.mark.mesh)])
def test_a_token_crosses_to_a_node_once(given, inner):
  plan, x_ND, params = given
  _, sums = eight.outcome("dedup", eight.mesh(expert=W), plan, x_ND, params, inner=inner)
  crossed = forwarded = 0
  for token in range(N):
    home = token // (N // W)
    owners = [int(e) // (E // W) for e in plan.expert_NK[token] if e >= 0]
    crossed += len({owner // inner for owner in owners} - {home // inner})
    forwarded += sum(owner % inner != home % inner for owner in owners)
  assert int(sums["crossed"]) == crossed and int(sums["forwarded"]) == forwarded


def test_over_all_choices_the_crossings_are_those_of_the_formula():
  """Every set of 3 of 8 experts once for every node: T (N - share that stays) rows cross."""
  expert_NK = np.array(list(itertools.combinations(range(E), K)))  # 56 sets, 7 for a device
  every_NK = jnp.asarray(np.concatenate([expert_NK] * 2))  # all sets in either node of four
  plan = TokenPlan(every_NK, jnp.ones(every_NK.shape), E)
  x_ND, params = plans.arguments(len(every_NK), D, F, E)
  _, sums = eight.outcome("dedup", eight.mesh(expert=W), plan, x_ND, params, inner=4)
  touched = dedup.nodes_of(E, K, 2)
  assert int(sums["crossed"]) == round(len(every_NK) * touched / 2)  # half of them stay


def test_a_step_without_room_is_counted_and_loses_nothing(given):
  plan, x_ND, params = given
  skewed = TokenPlan(jnp.tile(jnp.arange(K)[None], (N, 1)), plan.gate_NK, E)
  mesh = eight.mesh(expert=W)
  y_ND, sums = eight.outcome("dedup", mesh, skewed, x_ND, params, inner=2, room=1.0)
  assert int(sums["spilled"]) == 1
  np.testing.assert_allclose(
    y_ND, eight.outcome("dense", None, skewed, x_ND, params)[0], rtol=1e-4, atol=1e-4
  )


def test_experts_over_two_axes_are_a_node_by_the_last(given):
  """A folded role: experts over data and expert, so that nodes are what `expert` connects."""
  with axes.by_roles(axes.Config(experts="E:data+expert")):
    program = eight.program("hierarchical", eight.mesh(data=2, expert=4), *given)[0]
  np.testing.assert_allclose(
    program(*given)[0], eight.outcome("gather", None, *given)[0], rtol=1e-4, atol=1e-4
  )
  sizes = [one.size for one in eight.moved(program) if one.kind == "all-to-all"]
  assert sizes == [4, 2, 4, 2]


def test_nodes_must_divide_the_owners(given):
  with pytest.raises(Wrong, match="8 parts of the experts do not form nodes of 3"):
    eight.program("hierarchical", eight.mesh(expert=W), *given, inner=3)
