"""Routing kernels: the choice of the highest scores and the sort by expert, against the library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core import routing as core
from pallas_kernels.routing import library, xla

TOP_K = jax.jit(xla.top_k, static_argnums=1)
SHAPES = {  # tokens, experts, choices: one block, several with a rest, groups of experts
  "few": (250, 66, 5),
  "blocks": (600, 30, 3),
  "groups": (70, 264, 9),
}


def scores(shape, kind):
  """Numbers that are hard to tell apart, or to compare at all."""
  rng = np.random.default_rng(0)
  normal = rng.normal(size=shape).astype(np.float32)
  masked = np.where(rng.random(shape) < 0.7, -np.inf, normal).astype(np.float32)
  masked[0], masked[1] = -np.inf, np.inf
  return {
    "normal": normal,
    "ties": np.round(normal),
    "equal": np.zeros_like(normal),
    "signed_zeros": np.copysign(0, normal),
    "last_bits": np.float32(1) + rng.integers(0, 40, shape).astype(np.float32) * 2.0**-23,
    "last_bits_below_0": -1 - rng.integers(0, 40, shape).astype(np.float32) * 2.0**-23,
    "huge": normal * np.float32(6e37),
    "tiny": normal * np.float32(1e-40),
    "masked": masked,
    "any_bits": rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),  # NaN too
  }[kind].astype(np.float32)


KINDS = ("normal", "ties", "equal", "signed_zeros", "last_bits", "last_bits_below_0", "huge",
         "tiny", "masked", "any_bits")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_highest_scores_are_those_of_lax_top_k(shape, kind):
  N, E, k = SHAPES[shape]
  score_NE = scores((N, E), kind)
  assert xla.does(N, E, k, score_NE.dtype)
  np.testing.assert_array_equal(TOP_K(score_NE, k), jax.lax.top_k(score_NE, k)[1])


def test_what_is_not_done_in_rounds_is_done_by_the_library():
  score_NE = scores((500, 40), "normal")
  assert not xla.does(500, 40, 20, score_NE.dtype)
  np.testing.assert_array_equal(TOP_K(score_NE, 20), jax.lax.top_k(score_NE, 20)[1])
  with jax.enable_x64(True):
    wide_NE = jnp.asarray(1 + 2.0**-40 * np.arange(40)[None], jnp.float64)
    wide_NE = jnp.broadcast_to(wide_NE, (500, 40))
    assert (TOP_K(wide_NE, 2) == jnp.array([[39, 38]])).all()


def test_scores_may_be_mapped_and_have_no_gradient():
  score_BNE = jnp.asarray(scores((3, 250, 66), "last_bits"))
  got_BNK = jax.jit(jax.vmap(functools.partial(core.top_k, k=2)))(score_BNE)
  np.testing.assert_array_equal(got_BNK, jax.lax.top_k(score_BNE, 2)[1])

  def chosen(score_NE):
    return core.take(score_NE, core.top_k(score_NE, 2)).sum()

  dscore_NE = np.asarray(jax.jit(jax.grad(chosen))(score_BNE[0]))
  np.testing.assert_array_equal(dscore_NE.sum(1), 2)
  np.testing.assert_array_equal(np.take_along_axis(dscore_NE, np.asarray(got_BNK[0]), 1), 1)


def test_devices_choose_for_their_own_tokens():
  mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
  score_NE = scores((256, 66), "ties")
  want_NK = jax.lax.top_k(score_NE, 2)[1]
  with jax.set_mesh(mesh):
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    program = jax.jit(lambda score_NE: core.top_k(score_NE, 2), in_shardings=cut)
    program = program.lower(score_NE).compile()
    np.testing.assert_array_equal(program(jax.device_put(score_NE, cut)), want_NK)
  assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("module", [xla, library])
@pytest.mark.parametrize(("M", "E"), [(9, 3), (2048, 4), (2100, 7), (2500, 40), (6, 40)])
def test_rows_are_sorted_as_by_a_stable_sort(module, M, E):
  expert_M = np.random.default_rng(0).integers(0, E + 1, M)  # E: of none
  order_M, place_M, size_E = jax.jit(module.sort, static_argnums=1)(expert_M, E)
  want_M = np.argsort(expert_M, kind="stable")
  np.testing.assert_array_equal(order_M, want_M)
  np.testing.assert_array_equal(place_M, np.argsort(want_M))
  np.testing.assert_array_equal(size_E, np.bincount(expert_M, minlength=E + 1)[:E])


def test_expert_and_row_may_be_too_much_for_one_integer():
  expert_M = jnp.array([2**30 - 1, 3, 2**30 - 1, 0])
  order_M = jax.jit(lambda expert_M: library.sort(expert_M, 2**30)[0])(expert_M)
  assert order_M.tolist() == [3, 1, 0, 2]
