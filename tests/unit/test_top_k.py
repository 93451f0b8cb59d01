"""The choice of the highest scores, against the library's."""

import jax
import numpy as np
import pytest

from moejax.core import routing


@pytest.mark.parametrize(("ids", "k"), [(5, 5), (7, 2), (20, 17)])
def test_it_is_lax_top_k_ties_and_masked_scores_included(ids, k):
  score_NU = np.random.default_rng(0).integers(-2, 3, size=(40, ids)).astype(np.float32)
  score_NU[::3, ::2] = -np.inf
  score_NU[5] = -np.inf
  got_NK = jax.jit(lambda score_NU: routing.top_k(score_NU, k))(score_NU)
  np.testing.assert_array_equal(got_NK, jax.lax.top_k(score_NU, k)[1])


def test_no_number_still_gives_an_id():
  assert int(routing.top_k(np.full((1, 3), np.nan, np.float32), 2).max()) < 3
