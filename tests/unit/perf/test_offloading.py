"""Rings of sections and caches of experts, against closed forms and what is best by hindsight."""

import itertools

import pytest

from moejax.perf import offloading

CASES = list(itertools.product((1, 2, 3, 5), (1.0, 2.0), (0.5, 1.0, 3.0)))


@pytest.mark.parametrize("slots, work, copy", CASES)
def test_a_ring_stalls_when_the_formula_says(slots, work, copy):
  """With an engine for each copy: none if copy <= (slots - 1) * work. With one: nor copy > work."""
  N, passes = 8, 6
  ideal = N * passes * work
  free = offloading.ring(N, slots, work, copy, passes, engines=N)
  assert (free == ideal) == (copy <= (slots - 1) * work)
  one = offloading.ring(N, slots, work, copy, passes)
  assert (one == ideal) == (copy <= min(1, slots - 1) * work)
  assert ideal <= free <= one


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_the_period_of_a_ring_is_its_closed_form(slots):
  """In the long run a section takes the longest of its work, its copy, and both over the slots."""
  N, work, copy = 8, 1.0, 2.5
  long, short = (offloading.ring(N, slots, work, copy, passes) for passes in (40, 20))
  assert (long - short) / (20 * N) == pytest.approx(max(work, copy, (work + copy) / slots))


def test_all_sections_resident_never_copy():
  assert offloading.ring(8, 8, 1.0, 100.0, passes=2) == 16.0


def best(uses, room):
  """Belady's cache, which knows the future: an upper bound."""
  held, hits = set(), 0
  for i, one in enumerate(uses):
    hits += one in held
    held.add(one)
    if len(held) > room:
      rest = uses[i + 1 :]
      later = lambda key, rest=rest: rest.index(key) if key in rest else len(rest)
      held.remove(max(held, key=later))
  return hits / len(uses)


def test_no_cache_beats_the_one_that_knows_the_future():
  uses = offloading.drifting(400, experts=20, skew=1.0, every=50)
  for room in (2, 5, 20):
    assert max(offloading.lru(uses, room), offloading.lfu(uses, room)) <= best(uses, room)
  everything = 1 - len(set(uses)) / len(uses)  # only the first use of each misses
  assert offloading.lru(uses, 20) == offloading.lfu(uses, 20) == everything


def test_what_was_popular_is_forgotten_by_decay():
  uses = [0, 1] * 500 + [2, 3] * 500
  forgets, never = offloading.lfu(uses, 2, decay=0.1, period=50), offloading.lfu(uses, 2, decay=1.0)
  assert forgets > 0.9 and never < 0.6
