"""The maps from visits to tiles and groups against what they promise, for all kinds of sizes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import tiles

M, E = 13, 3
SIZES = [s for s in itertools.product((0, 1, 4, 5, 9, 13), repeat=E) if sum(s) <= M]


def owners(size_E):
  """The group of each row; E for none."""
  return np.repeat(np.arange(E + 1), [*size_E, M - sum(size_E)])


def drawn(function, b, **options):
  """Sizes -> the map as numpy arrays, compiled once."""
  compiled = jax.jit(functools.partial(function, M=M, b=b, **options))
  return lambda size_E: jax.tree.map(np.asarray, compiled(jnp.array(size_E)))


def test_every_row_is_written_once_and_by_its_group():
  for b in (1, 4, 13, 16):
    visits_of = drawn(tiles.by_tile, b)
    for size_E in SIZES:
      visits, written_M = visits_of(size_E), np.full(M, -1)
      for v in range(visits.count):
        first, last = visits.first_V[v], visits.last_V[v]
        assert visits.tile_V[v] * b <= first < last <= (visits.tile_V[v] + 1) * b
        assert (written_M[first:last] == -1).all()
        written_M[first:last] = visits.group_V[v]
      np.testing.assert_array_equal(written_M, owners(size_E))
      assert (np.diff(visits.tile_V) >= 0).all()  # a tile stays in memory until it is whole
      assert len(visits.tile_V) == -(-M // b) + E


def test_every_group_is_visited_and_sees_its_rows_alone():
  for b in (1, 4, 13, 16):
    visits_of = drawn(tiles.by_tile, b, every_group=True)
    for size_E in SIZES:
      visits, seen = visits_of(size_E), [[] for _ in range(E)]
      for v in range(visits.count):
        seen[visits.group_V[v]] += range(visits.first_V[v], visits.last_V[v])
        assert 0 <= visits.tile_V[v] < -(-M // b)
      assert [len(s) for s in seen] == list(size_E)
      np.testing.assert_array_equal(sum(seen, []), np.arange(sum(size_E)))
      assert set(visits.group_V[: visits.count]) == set(range(E))
      assert (np.diff(visits.group_V) >= 0).all()


def test_visits_beyond_the_count_repeat_the_last_one():
  visits = drawn(tiles.by_tile, 4)((13, 0, 0))
  assert visits.count == 4 and len(visits.tile_V) == 7
  for a_V in visits[:4]:
    assert (a_V[4:] == a_V[3]).all()


def test_tiles_that_begin_with_their_group_have_one_group_each():
  for b in (1, 4, 13, 16):
    tiles_of = drawn(tiles.by_group, b)
    for size_E in SIZES:
      written_M = np.full(M, -1)
      for group, first, last in zip(*tiles_of(size_E), strict=True):
        assert first <= last <= min(first + b, M)
        assert (written_M[first:last] == -1).all()
        written_M[first:last] = group
      np.testing.assert_array_equal(written_M, owners(size_E))


def test_sizes_that_exceed_the_rows_reach_no_row_behind_them():
  for function in (tiles.by_tile, functools.partial(tiles.by_tile, every_group=True)):
    visits = drawn(function, 4)((9, 9, 9))
    assert visits.last_V.max() <= M and visits.tile_V.max() == 3
  assert drawn(tiles.by_group, 4)((9, 9, 9))[2].max() <= M
