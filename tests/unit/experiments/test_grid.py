"""Grids as data: the words, stable hashes, and the sentences for wrong ones."""

import pytest

from experiments import grid
from moejax.core.plugin import Wrong


def test_words_nest():
  points = grid.points(
    {"product": [
      {"chain": [{"label": ["dense"]}, {"prefix": ["model.moe", {"num_experts": [4, 8]}]}]},
      {"train.seed": [0, 1]},
    ]}
  )  # fmt: skip
  assert points == [
    {"label": "dense", "train.seed": 0},
    {"label": "dense", "train.seed": 1},
    {"model.moe.num_experts": 4, "train.seed": 0},
    {"model.moe.num_experts": 4, "train.seed": 1},
    {"model.moe.num_experts": 8, "train.seed": 0},
    {"model.moe.num_experts": 8, "train.seed": 1},
  ]


def test_a_point_comes_once_and_a_sample_is_the_same_for_a_seed():
  twice = {"chain": [{"a": [1, 2]}, {"a": [2, 3]}]}
  assert grid.points(twice) == [{"a": 1}, {"a": 2}, {"a": 3}]
  draw = lambda seed: grid.points({"sample": [3, seed, {"a": list(range(20))}]})
  assert draw(0) == draw(0) != draw(1)
  assert len(draw(0)) == 3 and draw(0) == sorted(draw(0), key=lambda point: point["a"])


def test_a_key_is_stable_across_processes():
  """A hash that changed would run every finished sweep again."""
  assert grid.key({"train": {"steps": 3}, "layers": [{"ffn": "moe"}]}) == "38d38b510dae"


@pytest.mark.parametrize(
  "wrong, sentence",
  [
    ({}, "is no grid"),
    ([{"a": [1]}], "is no grid"),
    ({"a": 3}, "'a' has 3 where a list of values should be"),
    ({"produkt": {}}, "Did you mean 'product'"),
    ({"a": [1], "zip": []}, "'zip' stands beside ['a']"),
    ({"zip": [{"a": [1, 2]}, {"b": [1]}]}, "zip got grids of 2, 1 points"),
    ({"product": [{"a": [1]}, {"a": [2]}]}, "'a' is set by two factors"),
    ({"sample": [3, 0, {"a": [1, 2]}]}, "cannot sample 3 of 2 points"),
    ({"sample": [3, {"a": [1, 2]}]}, "'sample' has [3"),
  ],
)
def test_a_wrong_grid_is_one_sentence(wrong, sentence):
  with pytest.raises(Wrong) as caught:
    grid.points(wrong)
  assert sentence in str(caught.value)
