"""Parameter groups: which leaves learn, how fast, and which decay.

Section:  `rules`, a list in order; the first one that matches a leaf decides, for each layer of it.
          `match` is axis letters ("E": every leaf with E in its suffix) or a regular expression
          that is searched in the path of the leaf, such as "layer_003/ffn/router/gate_DE".
          `lr`, and the `schedule` if there is one, multiply the learning rate of the run.

Without a rule, weight decay spares norm scales and biases (they set a size on purpose; decay of a
weight before a norm only sets its effective learning rate), the embedding (the row of a rare token
would shrink at every step, and be pushed back only when the token appears) and, for the same
reason, the rows of memories (P in the suffix).
"""

import dataclasses
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import axes, plugin
from moejax.core.plugin import Wrong

SPARED = re.compile(r"^embed/|/(scale|constant|b[qkv])_[^/]*$")  # and whatever has rank 1


@dataclasses.dataclass(frozen=True)
class Config:
  match: str
  lr: float = 1.0  # times the learning rate of the run
  schedule: typing.Any = None  # of a further factor, over all steps of the run
  weight_decay: float | None = None  # None: as without a rule
  frozen: bool = False

  def __post_init__(self):
    _compiled(self.match)
    if self.lr < 0 or (self.weight_decay or 0) < 0:
      raise Wrong(
        f"rules: {self.match!r} has lr {self.lr} and weight_decay {self.weight_decay}; neither may"
        " be negative."
      )


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the rules say of one leaf: numbers, or arrays [L, 1, ...] where its layers differ."""

  lr: float | np.ndarray
  weight_decay: float | np.ndarray
  learns: bool | np.ndarray
  schedules: tuple = (None,)  # of the factor on lr: one, or one per layer


def names(path: tuple[str, ...], shape: tuple) -> list[str]:
  """The paths of a leaf by layer: one, or one for each layer stacked in it.

  >>> names(("layers_002_005", "1", "ffn", "wo_FD"), (2, 8, 4))
  ['layer_003/ffn/wo_FD', 'layer_005/ffn/wo_FD']
  """
  run = re.fullmatch(r"layers_(\d+)_(\d+)", path[0])
  if run is None:
    return ["/".join(path)]
  first, last = map(int, run.groups())
  pattern = (last - first + 1) // shape[0]
  layers = [first + repeat * pattern + int(path[1]) for repeat in range(shape[0])]
  return ["/".join((f"layer_{layer:03d}", *path[2:])) for layer in layers]


def matches(word: str, name: str) -> bool:
  """Whether axis letters or a regular expression name a leaf.

  >>> matches("EF", "layer_000/ffn/wo_EFD"), matches("router", "layer_000/ffn/wo_EFD")
  (True, False)
  """
  if word.isalpha() and word.isupper():
    return set(word) <= set(axes.letters(name.rpartition("/")[2]))
  return _compiled(word).search(name) is not None


def settings(params, rules: tuple, weight_decay: float, trainable=None):
  """The Setting of every leaf; `trainable` is None (all), a word as in `match`, or several."""
  words = (trainable,) if isinstance(trainable, str) else trainable
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  paths = [(tuple(key.key for key in path), leaf.shape) for path, leaf in leaves]
  known = [name for path, shape in paths for name in names(path, shape)]
  for word in (*(rule.match for rule in rules), *(words or ())):
    if not any(matches(word, name) for name in known):
      raise Wrong(f"optim: no parameter matches {word!r}. {plugin.hint(word, known)}")

  def of_layer(name):
    rule = next((rule for rule in rules if matches(rule.match, name)), Config("."))
    decay = weight_decay if rule.weight_decay is None else rule.weight_decay
    spared = rule.weight_decay is None and _spared(name)
    learns = not rule.frozen and (words is None or any(matches(word, name) for word in words))
    return rule.lr, 0.0 if spared else decay, learns, rule.schedule

  def of_leaf(path, leaf):
    found = [of_layer(name) for name in names(tuple(key.key for key in path), leaf.shape)]
    *columns, schedules = zip(*found, strict=True)
    schedules = schedules[:1] if len(set(schedules)) == 1 else schedules
    lr, decay, learns = (_short(column, len(leaf.shape)) for column in columns)
    return Setting(lr, decay, learns, schedules)

  return jax.tree_util.tree_map_with_path(of_leaf, params)


def rate(setting: Setting, rank: int, step, steps: int | None):
  """What the learning rate of the run is multiplied with at a step of `steps` in all."""
  if setting.schedules == (None,):
    return setting.lr
  if steps is None:
    raise Wrong("rules: a schedule needs the number of all steps; give it to the optimiser.")
  value = lambda cfg: 1.0 if cfg is None else plugin.module(cfg).value(step, steps, cfg)
  found = jnp.array([value(cfg) for cfg in setting.schedules])
  return setting.lr * (found[0] if len(found) == 1 else found.reshape(-1, *(1,) * (rank - 1)))


def learning(tree, setting) -> dict:
  """The part of a tree that learns: frozen leaves are not in it."""
  if not isinstance(tree, dict):
    return tree
  kept = {key: learning(value, setting[key]) for key, value in tree.items() if key in setting}
  return {k: v for k, v in kept.items() if not _empty(v, setting[k])}


def fill(part, whole, make) -> dict:
  """`part` in the shape of `whole`, with make(leaf) for every leaf that is not in it."""
  rest = lambda key, leaf: fill(part[key], leaf, make) if key in part else jax.tree.map(make, leaf)
  return {key: rest(key, leaf) for key, leaf in whole.items()} if isinstance(whole, dict) else part


def _empty(value, setting):
  return value == {} if isinstance(value, dict) else not np.any(setting.learns)


def _spared(name):
  letters = axes.letters(name.rpartition("/")[2])
  return len(letters) == 1 or "P" in letters or SPARED.search(name) is not None


def _short(column, rank):
  """One number if all layers agree, else one for each, to multiply the stacked leaf with."""
  if len(set(column)) == 1:
    return column[0]
  return np.array(column, np.float32).reshape(-1, *(1,) * (rank - 1))


def _compiled(word):
  try:
    return re.compile(word)
  except re.error as reason:
    raise Wrong(f"rules: {word!r} is no regular expression ({reason}); correct it.") from reason
