"""Grids over config paths: a point is a dict path -> value, a grid a list of points.

A sweep file writes its grid as plain data, since configs import nothing: a dict of paths, each with
the list of its values, or one of the words below with what it joins.

    {"product": [grid, ...]}             every point of the one with every point of the other
    {"zip": [grid, ...]}                 first with first, second with second
    {"chain": [grid, ...]}               the points of one grid after those of another
    {"prefix": ["model.moe", grid]}      the same points, deeper in the config
    {"sample": [count, seed, grid]}      some of the points, the same ones for a seed

`label` stands among the paths of a point as the name of its line in the table and in the plot.

>>> points({"product": [{"a": [1, 2]}, {"zip": [{"b": [3, 4]}, {"c": [5, 6]}]}]})[:2]
[{'a': 1, 'b': 3, 'c': 5}, {'a': 1, 'b': 4, 'c': 6}]
"""

import hashlib
import itertools
import json
import random

from moejax.core import plugin
from moejax.core.plugin import Wrong

WORDS = ("product", "zip", "chain", "prefix", "sample")
ARITY = {"prefix": 2, "sample": 3}  # the other words take any number
LABEL = "label"


def points(grid: dict) -> list[dict]:
  """The points of a grid written as data, each once."""
  return list({key(point): point for point in _points(grid)}.values())


def product(*grids: list[dict]) -> list[dict]:
  """Every combination; the last grid moves fastest.

  >>> product([{"a": 1}, {"a": 2}], [{"b": 3}])
  [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
  """
  return [_union(parts) for parts in itertools.product(*grids)]


def zipped(*grids: list[dict]) -> list[dict]:
  """Point by point, from grids of one length.

  >>> zipped([{"a": 1}, {"a": 2}], [{"b": 3}, {"b": 4}])
  [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
  """
  if len({len(grid) for grid in grids}) > 1:
    sizes = ", ".join(str(len(grid)) for grid in grids)
    raise Wrong(f"grid: zip got grids of {sizes} points; make them equally long.")
  return [_union(parts) for parts in zip(*grids, strict=True)]


def chain(*grids: list[dict]) -> list[dict]:
  """One grid after the other.

  >>> chain([{"a": 1}], [{"b": 2}])
  [{'a': 1}, {'b': 2}]
  """
  return list(itertools.chain(*grids))


def prefix(path: str, grid: list[dict]) -> list[dict]:
  """Every path below `path`; labels stay.

  >>> prefix("model.moe", [{"num_experts": 4, "label": "four"}])
  [{'model.moe.num_experts': 4, 'label': 'four'}]
  """
  return [{p if p == LABEL else f"{path}.{p}": v for p, v in point.items()} for point in grid]


def sample(count: int, seed: int, grid: list[dict]) -> list[dict]:
  """`count` points without repetition, in their old order.

  >>> len(sample(2, 0, [{"a": 1}, {"a": 2}, {"a": 3}]))
  2
  """
  if not 0 < count <= len(grid):
    raise Wrong(f"grid: cannot sample {count} of {len(grid)} points; ask for 1 to {len(grid)}.")
  return [grid[i] for i in sorted(random.Random(seed).sample(range(len(grid)), count))]


def key(content) -> str:
  """Twelve hex digits that depend on content alone, not on the order of keys.

  >>> key({"a": 1, "b": [2]}) == key({"b": (2,), "a": 1}) != key({"a": 1})
  True
  """
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def names(grid: list[dict]) -> list[str]:
  """What points are called: their label, and as few settings as tell those of one label apart.

  >>> names([{"label": "MoE", "a.x": 1, "b": 2}, {"label": "MoE", "a.x": 3, "b": 4}, {"a.x": 1}])
  ['MoE, x=1', 'MoE, x=3', 'x=1']
  """
  return [", ".join([*_label(point), *_told_apart(point, grid)]) for point in grid]


def _label(point):
  return [point[LABEL]] if LABEL in point else []


def _told_apart(point, grid):
  """The settings of a point that its namesakes do not share; its first one if it has no label."""
  others = [other for other in grid if _label(other) == _label(point)]
  words, seen = [], 1
  for path in point:
    distinct = len({key([other.get(p) for p in (*words, path)]) for other in others})
    if path != LABEL and distinct > seen:
      words, seen = [*words, path], distinct
  words = words or [path for path in point if path != LABEL and not _label(point)][:1]
  return [f"{path.rpartition('.')[2]}={point[path]}" for path in words]


def _points(grid):
  if not isinstance(grid, dict) or not grid:
    raise Wrong(f"grid: {grid!r} is no grid; write a dict of paths and lists, or of {WORDS}.")
  words = [word for word in grid if word in WORDS]
  if not words:
    return product(*(_values(path, values) for path, values in grid.items()))
  word, args = words[0], grid[words[0]]
  if len(grid) > 1:
    others = [other for other in grid if other != word]
    raise Wrong(f"grid: {word!r} stands beside {others}; give it a dict of its own.")
  if not isinstance(args, list | tuple) or len(args) != ARITY.get(word, len(args)):
    raise Wrong(f"grid: {word!r} has {args!r}; see the forms at the top of experiments/grid.py.")
  if word == "prefix":
    return prefix(args[0], _points(args[1]))
  if word == "sample":
    return sample(args[0], args[1], _points(args[2]))
  return {"product": product, "zip": zipped, "chain": chain}[word](*map(_points, args))


def _values(path, values):
  if not isinstance(values, list | tuple) or not values:
    hint = plugin.hint(path, WORDS) if "." not in path else "Write [value] for a single one."
    raise Wrong(f"grid: {path!r} has {values!r} where a list of values should be. {hint}")
  return [{path: value} for value in values]


def _union(parts):
  out = {}
  for part in parts:
    twice = [path for path in part if path in out]
    if twice:
      raise Wrong(f"grid: {twice[0]!r} is set by two factors; take it out of one.")
    out |= part
  return out
