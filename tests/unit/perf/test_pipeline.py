"""Chunks of a dispatch: the simulator against its bound, a hand-made case and brute force."""

import itertools

import eight
import numpy as np
import pytest

from moejax.perf import pipeline
from moejax.perf.pipeline import Cost, Costs, Sizes


def test_the_simulator_lies_between_the_bound_and_a_third_more():
  draw = np.random.default_rng(0)
  ratios = []
  for _ in range(5000):
    chunks, times = int(draw.integers(1, 17)), draw.exponential(size=4)
    ratios.append(pipeline.simulate(chunks, *times) / pipeline.bound(chunks, *times))
  assert min(ratios) > 1 - 1e-9 and max(ratios) < 1.3
  assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.4  # often it is the bound


def test_three_chunks_by_hand():
  """a=1, g=1, e=2, s=1. Ways there end at 1, 2, 3; gathers at 2, 3, 4; experts at 4, 6, 8;
  reduce-scatters at 5, 7, 9; ways back at 6, 8, 10."""
  assert pipeline.simulate(3, 1, 1, 2, 1) == 10


def test_links_are_busy_or_pause_until_the_end():
  """Pauses and exchanges add up to the end; in three chunks by hand the links pause 3 to 5, 6 to 7
  and 8 to 9."""
  draw = np.random.default_rng(1)
  for _ in range(500):
    chunks, times = int(draw.integers(1, 17)), draw.exponential(size=4)
    busy, paused = 2 * chunks * times[0], sum(pipeline.gaps(chunks, *times))
    assert busy + paused == pytest.approx(pipeline.simulate(chunks, *times))
  assert pipeline.gaps(3, 1, 1, 2, 1) == [2, 1, 1]


def test_no_other_partition_of_gradients_hides_more():
  """Against all ways to lay whole bytes into pauses, none before it is there."""
  draw, cost = np.random.default_rng(2), Cost(1.0, 1.0)
  for _ in range(60):
    come = draw.integers(0, 5, 3).tolist()
    pauses = [draw.integers(0, 5, draw.integers(0, 3)).tolist() for _ in range(3)]
    room = [sum(max(0, pause - 1) for pause in layer) for layer in pauses]
    ways = itertools.product(*(range(n + 1) for n in room))
    legal = [w for w in ways if all(sum(w[: i + 1]) <= sum(come[: i + 1]) for i in range(3))]
    taken, left = pipeline.partition(come, pauses, cost)
    assert sum(taken) == max(map(sum, legal)) and left == sum(come) - sum(taken)


def test_the_choice_is_the_best_of_all_and_follows_the_load():
  link, chip = Cost(1e-5, 1 / 50e9), Cost(1e-5, 1 / 500e12)
  costs = Costs(link, link._replace(beta=1 / 450e9), chip, link._replace(beta=1 / 450e9))
  large, small = Sizes(1e8, 1e8, 1e12, 1e8), Sizes(1e4, 1e4, 1e8, 1e4)
  for sizes in (large, small):
    ends = [pipeline.simulate(r, *pipeline.times(costs, sizes, r)) for r in range(1, 17)]
    assert pipeline.best(costs, sizes) == 1 + int(np.argmin(ends))
  assert pipeline.both(costs, small) == (1, 1)
  forward, backward = pipeline.both(costs, large)
  assert forward > 1 and backward > 1


def test_a_search_tries_all_and_keeps_the_median():
  search = pipeline.Search((1, 2, 4), tries=3)
  cost = {1: iter([3.0, 3.0, 3.0]), 2: iter([9.0, 2.0, 2.0]), 4: iter([1.0, 8.0, 8.0])}
  tried = []
  for _ in range(9):
    tried.append(search.choose("x"))
    search.record("x", tried[-1], next(cost[tried[-1]]))
  assert tried == [1] * 3 + [2] * 3 + [4] * 3 and search.choose("x") == 2


@pytest.mark.mesh
def test_collectives_of_this_machine_are_measured():
  """Least of many rounds, so that others on the machine disturb little; a line within a tenth."""
  found = pipeline.profile(eight.mesh(expert=8), "expert", rounds=15)
  assert set(found) == {"all_to_all", "all_gather", "reduce_scatter"}
  for cost, r2 in found.values():
    assert cost.beta > 0 and r2 > 0.9
