"""Which rows a tile of a grouped matmul works on: one map from visits to groups and tiles.

Rows are sorted by group and groups start anywhere, so that a tile of b rows may belong to several
groups. It is visited once for each of them, one visit after the other; a visit writes the rows of
its own group. There are at most tiles + groups - 1 visits, instead of tiles * groups.
"""

import typing

import jax
import jax.numpy as jnp


class Visits(typing.NamedTuple):
  """What each of V visits works on, of which the first `count` take place.

  Further ones repeat the last one, so that a grid of V programs may run them without harm.
  """

  group_V: jax.Array
  tile_V: jax.Array  # rows b * tile to b * (tile + 1)
  first_V: jax.Array  # the group's own rows in this tile: first <= row < last
  last_V: jax.Array
  count: jax.Array


def by_tile(size_E, M: int, b: int, every_group: bool = False) -> Visits:
  """Every row in one visit, tile by tile; rows beyond the last group are those of a group E.

  With `every_group` these rows are left out, and a group without rows has a visit too, so that it
  can be given zeros.

  >>> visits = by_tile(jnp.array([3, 0, 2]), 12, 4)
  >>> [a[: visits.count].tolist() for a in visits[:4]]
  [[0, 2, 2, 3, 3], [0, 0, 1, 1, 2], [0, 3, 4, 5, 8], [3, 4, 5, 8, 12]]
  >>> visits = by_tile(jnp.array([3, 0, 2]), 12, 4, every_group=True)
  >>> [a[: visits.count].tolist() for a in visits[:4]]
  [[0, 1, 2, 2], [0, 0, 0, 1], [0, 3, 3, 4], [3, 3, 4, 5]]
  """
  return _visits(_sizes(size_E, M, rest=not every_group), M, b, every_group)


def by_group(size_E, M: int, b: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(group_T, first_T, last_T) of tiles that begin with their group, so that none has two.

  Where tiles run in any order and write masked rows. Rows beyond the last group are those of a
  group E; tiles that are not needed have no rows.

  >>> group_T, first_T, last_T = by_group(jnp.array([3, 0, 5]), 9, 4)
  >>> group_T.tolist(), first_T.tolist(), last_T.tolist()
  ([0, 2, 2, 3, 3, 3], [0, 3, 7, 8, 9, 9], [3, 7, 8, 9, 9, 9])
  """
  size_G = _sizes(size_E, M, rest=True)
  end_G = jnp.cumsum(size_G)
  done_G = jnp.cumsum(-(-size_G // b))
  tile_T = jnp.arange(M // b + min(len(size_G), M), dtype=jnp.int32)
  group_T = _found(done_G, tile_T)
  place_T = tile_T - (done_G + size_G // -b)[group_T]
  first_T = jnp.minimum((end_G - size_G)[group_T] + b * place_T, M)
  return group_T, first_T, jnp.minimum(first_T + b, end_G[group_T])


def _sizes(size_E, M: int, rest: bool):
  """Rows per group, of which none lies beyond row M; then the rows that are left, if asked for."""
  end_E = jnp.minimum(jnp.cumsum(size_E, dtype=jnp.int32), M)
  return jnp.diff(end_E, prepend=0, append=jnp.int32(M) if rest else None)


def _found(done_G, number_V):
  """The group in which a number falls, of groups that end before done_G; the last one behind it."""
  group_V = jnp.searchsorted(done_G, number_V, side="right", method="compare_all")
  return jnp.minimum(group_V, len(done_G) - 1).astype(jnp.int32)


def _visits(size_G, M: int, b: int, empty: bool) -> Visits:
  """Group by group the tiles that hold its rows; `empty` says if one without rows has a visit."""
  tiles, G = -(-M // b), len(size_G)
  end_G = jnp.cumsum(size_G)
  start_G = end_G - size_G
  many_G = jnp.where(size_G > 0, (end_G - 1) // b - start_G // b + 1, int(empty))
  done_G = jnp.cumsum(many_G)
  count = done_G[-1]
  visit_V = jnp.minimum(jnp.arange(tiles + G - 1, dtype=jnp.int32), count - 1)
  group_V = _found(done_G, visit_V)
  tile_V = start_G[group_V] // b + visit_V - (done_G - many_G)[group_V]
  tile_V = jnp.minimum(tile_V, tiles - 1)  # of an empty group behind the last row
  first_V = jnp.maximum(start_G[group_V], tile_V * b)
  last_V = jnp.minimum(end_G[group_V], (tile_V + 1) * b)
  return Visits(group_V, tile_V, first_V, last_V, count)
