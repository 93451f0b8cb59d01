"""The maps from visits to tiles and groups against what they promise, and tiles for TPUs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import tiles
from pallas_kernels.grouped_matmul import cases, tpu_tiles

M, E = 13, 3
SIZES = [s for s in itertools.product((0, 1, 4, 5, 9, 13), repeat=E) if sum(s) <= M]


def owners(size_E):
  """The group of each row; E for none."""
  return np.repeat(np.arange(E + 1), [*size_E, M - sum(size_E)])


def drawn(function, b, sizes=SIZES, **options):
  """(sizes, their map) for many sizes, from one compiled program."""
  many = jax.jit(jax.vmap(functools.partial(function, M=M, b=b, **options)))(jnp.array(sizes))
  many = jax.tree.map(np.asarray, many)
  return [(size_E, jax.tree.map(lambda a, i=i: a[i], many)) for i, size_E in enumerate(sizes)]


def test_every_row_is_written_once_and_by_its_group():
  for b in (4, 13, 16):
    for size_E, visits in drawn(tiles.by_tile, b):
      written_M = np.full(M, -1)
      for v in range(visits.count):
        first, last = visits.first_V[v], visits.last_V[v]
        assert visits.tile_V[v] * b <= first < last <= (visits.tile_V[v] + 1) * b
        assert (written_M[first:last] == -1).all()
        written_M[first:last] = visits.group_V[v]
      np.testing.assert_array_equal(written_M, owners(size_E))
      assert (np.diff(visits.tile_V) >= 0).all()  # a tile stays in memory until it is whole
      assert len(visits.tile_V) == -(-M // b) + E


def test_every_group_is_visited_and_sees_its_rows_alone():
  for b in (4, 13, 16):
    for size_E, visits in drawn(tiles.by_tile, b, every_group=True):
      seen = [[] for _ in range(E)]
      for v in range(visits.count):
        seen[visits.group_V[v]] += range(visits.first_V[v], visits.last_V[v])
        assert 0 <= visits.tile_V[v] < -(-M // b)
      assert [len(s) for s in seen] == list(size_E)
      np.testing.assert_array_equal(sum(seen, []), np.arange(sum(size_E)))
      assert set(visits.group_V[: visits.count]) == set(range(E))
      assert (np.diff(visits.group_V) >= 0).all()


def test_visits_beyond_the_count_repeat_the_last_one():
  ((_, visits),) = drawn(tiles.by_tile, 4, [(13, 0, 0)])
  assert visits.count == 4 and len(visits.tile_V) == 7
  for a_V in visits[:4]:
    assert (a_V[4:] == a_V[3]).all()


def test_tiles_that_begin_with_their_group_have_one_group_each():
  for b in (4, 13, 16):
    for size_E, found in drawn(tiles.by_group, b):
      written_M = np.full(M, -1)
      for group, first, last in zip(*found, strict=True):
        assert first <= last <= min(first + b, M)
        assert (written_M[first:last] == -1).all()
        written_M[first:last] = group
      np.testing.assert_array_equal(written_M, owners(size_E))


def test_sizes_that_exceed_the_rows_reach_no_row_behind_them():
  for function in (tiles.by_tile, functools.partial(tiles.by_tile, every_group=True)):
    ((_, visits),) = drawn(function, 4, [(9, 9, 9)])
    assert visits.last_V.max() <= M and visits.tile_V.max() == 3
  ((_, found),) = drawn(tiles.by_group, 4, [(9, 9, 9)])
  assert found[2].max() <= M


@pytest.mark.parametrize("kind", tpu_tiles.CHIPS)
def test_tiles_fit_the_vmem_of_a_tpu_and_keep_both_of_its_cores_busy(kind):
  chip = tpu_tiles.CHIPS[kind]
  device = jax.sharding.AbstractDevice(kind, chip.cores, "tpu")
  mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    for name in cases.MODELS:
      case = cases.of_model(name)
      shape = {"M": case.M, "E": case.E, "I": case.D, "O": case.F}
      for part in ("forward", "d_rhs"):
        for itemsize in (2, 4):
          tile = tpu_tiles.heuristic(part, shape, itemsize)
          assert tpu_tiles.vmem(part, tile, itemsize) <= chip.vmem < tpu_tiles.limit()
          assert -(-case.F // tile.outputs) % chip.cores == 0
          assert tile.inputs % 128 == tile.outputs % 128 == 0
      at_once = tpu_tiles.heuristic("forward", shape).inputs == case.D
      assert at_once or chip.vmem < 16 * tpu_tiles.MIB
    with pytest.raises(NotImplementedError, match="no tile of .* rows fits the VMEM of"):
      tpu_tiles.heuristic("quantised", shape | {"I": 2**20}, 2, 1)
