"""Keys: a stream depends on its name and nothing else, in every process."""

import jax
import numpy as np

from moejax.core import rng

NAMES = ("params", "router", "dropout", "data", "sample")


def test_streams_differ_and_stay_what_they_were():
  draws = [int(jax.random.bits(rng.stream(jax.random.key(7), name))) for name in NAMES]
  assert len(set(draws)) == len(NAMES)
  # Written down once: another number here means that runs cannot be resumed by a new release.
  assert draws[:2] == [2046281699, 883759787]


def test_the_key_of_a_step_can_be_traced():
  want = [jax.random.key_data(rng.step_key(3, step)) for step in range(3)]
  got = jax.vmap(lambda step: jax.random.key_data(rng.step_key(3, step)))(np.arange(3))
  np.testing.assert_array_equal(got, np.stack(want))
  assert len({tuple(map(int, data)) for data in want}) == 3
