"""A dispatch in chunks: no bit changes, and each pass has its own number of exchanges."""

import eight
import numpy as np
import plans
import pytest
from close import assert_close

from moejax.core import config
from moejax.core.plugin import Wrong
from moejax.perf import hlo

N, D, F, E, K = 64, 6, 8, 8, 3
SLOTS, MESH = {"name": "all_to_all"}, {"data": 2, "expert": 4}


@pytest.fixture(scope="module")
def given():
  return eight.token_plan(N, E, K, factor=1.5), *plans.arguments(N, D, F, E)


def exchanges(program):
  found = [one for one in eight.moved(program) if one.kind == "all-to-all"]
  return len(found), hlo.totals(found)["all-to-all"]


def test_chunks_of_slots_change_no_bit_and_move_as_many_bytes(given):
  mesh = eight.mesh(**MESH)
  whole = eight.program("all_to_all", mesh, *given)[0]
  cut = eight.program("chunked", mesh, *given, transport=SLOTS, forward=2)[0]
  np.testing.assert_array_equal(cut(*given)[0], whole(*given)[0])
  slots = given[0].capacity // 8
  assert slots % 2  # one empty slot is added
  bytes_of_slot = 2 * E * D * 4.0
  assert exchanges(whole) == (2, slots * bytes_of_slot)
  assert exchanges(cut) == (4, (slots + 1) * bytes_of_slot)


@pytest.mark.mesh
@pytest.mark.parametrize("forward, backward", [(1, 3), (3, 2)])
def test_each_pass_has_its_own_chunks(given, forward, backward):
  mesh = eight.mesh(**MESH)
  want = eight.outcome("all_to_all", mesh, *given, grad=True)
  how = {"transport": SLOTS, "forward": forward, "backward": backward}
  program = eight.program("chunked", mesh, *given, grad=True, **how)[0]
  assert_close(program(*given), want)
  assert exchanges(program)[0] == 2 * forward + 2 * backward  # the forward pass is not run again


@pytest.mark.mesh
@pytest.mark.parametrize("transport", ["ragged", "ring", "all_gather", "dedup"])
def test_chunks_of_tokens_change_no_bit(given, transport):
  """16 tokens in 3 parts of 5 and 6; drops of the plan stay drops."""
  mesh = eight.mesh(**MESH)
  want = eight.outcome(transport, mesh, *given)[0]
  got = eight.outcome("chunked", mesh, *given, transport={"name": transport}, forward=3)[0]
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_wrong_configs_are_one_sentence():
  make = lambda **how: config.section("dispatch", {"name": "chunked", **how})
  with pytest.raises(Wrong, match="'sort' sends nothing"):
    make(transport={"name": "sort"})
  with pytest.raises(Wrong, match="0 backward chunks cannot be"):
    make(backward=0)
