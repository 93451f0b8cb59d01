"""Adaptive expert parallelism: one layout, every r, exactly the bytes of the paper."""

import eight
import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from close import assert_close

from moejax.core.plugin import Wrong
from moejax.perf import hlo

N, D, F, E, K, SIZES = 64, 6, 8, 2, 1, {"expert": 2, "tensor": 4}


@pytest.fixture(scope="module")
def given():
  return eight.token_plan(N, E, K, factor=1.25), *plans.arguments(N, D, F, E)


@pytest.fixture(scope="module")
def programs(given):
  mesh = eight.mesh(**SIZES)
  return {r: eight.program("adaptive", mesh, *given, r=r)[0] for r in (0, 1, 2, 4)}


def test_every_r_is_the_layer_on_one_device(given, programs):
  assert int(given[0].real_NK().sum()) < N  # some were dropped
  want = eight.outcome("gather", None, *given)[0]
  for program in programs.values():
    np.testing.assert_allclose(program(*given)[0], want, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(programs[0](*given)[0], programs[1](*given)[0])


@pytest.mark.parametrize("r", [0, 1, 2, 4])
def test_bytes_are_those_of_the_paper(given, programs, r):
  """all-to-all: 2 r E C D numbers; all-gather: all weights over owners times r."""
  c, owners = given[0].capacity // 8, SIZES["expert"]
  weights = 3 * E * D * F * 4.0
  found = eight.moved(programs[r])
  total = hlo.totals([one for one in found if one.kind in ("all-to-all", "all-gather")])
  want = {"all-to-all": 2 * r * E * c * D * 4.0} if r else {}
  if r < SIZES["tensor"]:
    want["all-gather"] = weights / (owners * r) if r else weights
  assert total == want
  # coordinated communication: with r = 1 only devices of one place among the slices talk
  sizes = {one.size for one in found if one.kind == "all-to-all"}
  assert sizes == ({owners * r} if r else set())
  if r == 1:
    over = {hlo.axes(one.groups, SIZES) for one in found if one.kind == "all-to-all"}
    assert over == {("expert",)}


@pytest.mark.mesh
def test_gradients_are_those_of_one_device(given):
  want = eight.outcome("gather", None, *given, grad=True)
  mesh = eight.mesh(**SIZES)
  for r in (0, 1, 2, 4):
    assert_close(eight.outcome("adaptive", mesh, *given, grad=True, r=r), want)


@pytest.mark.mesh
def test_r_changes_from_step_to_step_and_no_weight_moves(given):
  """Six steps of gradient descent with r changing against six with r = 1."""
  from jax.sharding import NamedSharding

  from moejax.core import axes, config, plugin
  from moejax.layers import experts

  (plan, x_ND, params), mesh = given, eight.mesh(**SIZES)

  def step(r):
    cfg = config.section("dispatch", {"name": "adaptive", "r": r})

    def loss(params):
      y_ND, _ = plugin.module(cfg).run(plan, x_ND, experts.gated(params), cfg)
      return jnp.mean((y_ND - 1) ** 2)

    return jax.jit(lambda p: jax.tree.map(lambda w, g: w - 0.01 * g, p, jax.grad(loss)(p)))

  with jax.set_mesh(mesh):
    put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    start = jax.tree.map(put, params, axes.specs(params, mesh))
    steps, results = {r: step(r) for r in (0, 1, 2, 4)}, []
    for path in ((1, 1, 1, 1, 1, 1), (1, 4, 2, 0, 2, 4)):
      now = start
      for r in path:
        now = steps[r](now)
        same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, 3), now, start)
        assert all(jax.tree.leaves(same))
      results.append(now)
  assert_close(results[1], results[0])


def test_an_r_that_does_not_divide_is_refused(given):
  with pytest.raises(Wrong, match="r=3 does not divide the 4 devices"):
    eight.program("adaptive", eight.mesh(**SIZES), *given, r=3)
  plan, x_ND, params = given
  params = {"wg_EDF": params["wg_EDF"][..., :6], "wu_EDF": params["wu_EDF"][..., :6],
            "wo_EFD": params["wo_EFD"][:, :6]}  # fmt: skip
  with pytest.raises(Wrong, match="the width 6 of an expert cannot be cut over 4 devices"):
    eight.program("adaptive", eight.mesh(**SIZES), plan, x_ND, params, r=1)
