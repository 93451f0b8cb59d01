"""Room for buffers: loops over choices, promises that are kept, and what the dispatch does."""

import eight
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from moejax import cli
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong
from moejax.dispatch import dedup
from moejax.lab import room
from moejax.trace import format as formats

E, K, N = 8, 2, 64
SIZES = {"data": 2, "expert": 4}


def skewed(seed, n=N):
  """Two different experts of each token; the first ones are taken more often."""
  draw = np.random.default_rng(seed)
  logit_NE = draw.gumbel(size=(n, E)) + np.linspace(1.5, 0, E)
  return np.argsort(-logit_NE, 1)[:, :K]


def test_rows_are_those_of_a_loop():
  expert_NK = skewed(0)
  expert_NK[3] = -1
  want = {(data, owner): 0 for data in range(2) for owner in range(4)}
  for token, choices in enumerate(expert_NK):
    data = token // (N // 2)
    for e in choices:
      if e >= 0:
        want[data, e // 2] += 1
  assert room.received(expert_NK, SIZES, E).tolist() == list(want.values())
  load = [[(expert_NK[g * 16 : g * 16 + 16] == e).sum() for e in range(E)] for g in range(4)]
  assert room.of_groups(expert_NK, 4, E) == np.max(load) / (16 * K / E)


@pytest.mark.parametrize("inner", [1, 2, 4])
def test_tokens_land_as_a_loop_sends_them(inner):
  """Each source sends a token once to the device of its own place in every node with a choice."""
  expert_NK = skewed(0)
  expert_NK[3], expert_NK[5, 1] = -1, -1
  nodes = 4 // inner
  want = np.zeros((inner, 2, nodes), int)
  for token, choices in enumerate(expert_NK):
    data, owner = token // (N // 2), token // (N // 8) % 4
    for node in {e // (E // nodes) for e in choices if e >= 0}:
      want[owner % inner, data, node] += 1
  assert room.landed(expert_NK, SIZES, E, inner).tolist() == want.tolist()
  even = N / 8 * dedup.nodes_of(E, K, nodes)
  fullest = room.received(expert_NK, SIZES, E).max() / (N * K / 8)
  assert room.of_nodes(expert_NK, SIZES, E, inner) == max(want.max() / even, fullest)
  with pytest.raises(Wrong, match="room: 4 owners do not form nodes of 3; give a divisor"):
    room.landed(expert_NK, SIZES, E, 3)


def test_without_owners_nobody_waits_for_more_than_its_tokens():
  assert room.landed(skewed(0), {"data": 4}, E, 1).tolist() == [[[16]] * 4]


def test_a_context_axis_lies_behind_the_experts():
  """Tokens are cut over expert, then context; devices of one context share the experts."""
  expert_NK = np.arange(8)[:, None] % 2
  rows = room.received(expert_NK, {"expert": 2, "context": 2}, experts=2)
  assert rows.tolist() == [2, 2, 2, 2]
  rows = room.received(np.repeat([0, 1, 0, 1], 2)[:, None], {"expert": 2, "context": 2}, experts=2)
  assert rows.tolist() == [4, 0, 0, 4]  # context 0 has tokens 0, 1, 4, 5


def test_a_promise_is_kept_nineteen_times_in_twenty():
  """Needs of a known law: the share beyond the room exceeds eps in about 5 per cent of trials."""
  draw, eps, broken = np.random.default_rng(1), 0.05, 0
  for _ in range(400):
    top = room.promised(draw.exponential(size=200), eps)
    broken += np.exp(-top) > eps
  assert 4 <= broken <= 32  # of 400, at most 20 expected, by a wide margin
  assert room.promised(np.ones(room.enough(eps) - 1), eps) is None
  assert room.promised(np.ones(room.enough(eps)), eps) == 1.0


def test_a_ladder_is_the_best_of_its_kind():
  needs = np.repeat([1.1, 1.5, 3.0], [60, 30, 10])
  assert room.ladder(needs, 3.0, rungs=1) == (3.0,)
  assert room.ladder(needs, 3.0, rungs=3) == (1.1, 1.5, 3.0)
  assert room.ladder(needs, 3.0, rungs=2) == (1.5, 3.0)  # 1.65 rows in the mean; with 1.1: 1.86


@pytest.mark.mesh
@pytest.mark.parametrize("rooms", [1.25, (1.0, 1.5)])
def test_the_dispatch_spills_where_the_need_says_so(rooms):
  x_ND, params = plans.arguments(N, 6, 8, E)
  top = rooms if isinstance(rooms, float) else rooms[-1]
  plan_of = lambda seed: TokenPlan(jnp.asarray(skewed(seed), jnp.int32), jnp.ones((N, K)), E)
  mesh = eight.mesh(**SIZES)
  program, _ = eight.program("ragged", mesh, plan_of(0), x_ND, params, room=rooms)
  spills = []
  for seed in range(12):
    _, sums = program(plan_of(seed), x_ND, params)
    have = -(-int(top * N * K / 8) // 8) * 8  # rows, in multiples of 8
    need = room.of_devices(skewed(seed), SIZES, E) * N * K / 8
    assert int(sums["spilled"]) == int(need > have)
    spills.append(int(sums["spilled"]))
  assert 0 < sum(spills) < 12


@pytest.mark.mesh
@pytest.mark.parametrize("inner", [1, 2])
def test_dedup_spills_where_either_step_has_not_room_enough(inner):
  x_ND, params = plans.arguments(N, 6, 8, E)
  plan_of = lambda seed: TokenPlan(jnp.asarray(skewed(seed), jnp.int32), jnp.ones((N, K)), E)
  mesh = eight.mesh(**SIZES)
  how = {"room": 1.5, "inner": inner}
  program, _ = eight.program("dedup", mesh, plan_of(0), x_ND, params, **how)
  n, nodes, seen = N // 8, 4 // inner, []
  have = lambda mean, most: min(-(-int(1.5 * mean) // 8) * 8, most)
  rows = (have(n * dedup.nodes_of(E, K, nodes), n * nodes), have(n * K, 4 * n * K))
  for seed in range(12):
    _, sums = program(plan_of(seed), x_ND, params)
    need = (room.landed(skewed(seed), SIZES, E, inner).max(),
            room.received(skewed(seed), SIZES, E).max())  # fmt: skip
    assert int(sums["spilled"]) == int(need[0] > rows[0] or need[1] > rows[1])
    fits = room.of_nodes(skewed(seed), SIZES, E, inner) <= 1.5
    assert not (fits and int(sums["spilled"])), "room enough by the verb is room enough"
    seen.append(int(sums["spilled"]))
  assert 0 < sum(seen) < 12


def test_the_verb_promises_and_reports(tmp_path, capsys):
  path, drawn = tmp_path / "a.trace", 90
  layers = {f"layer_{i:03d}": {"K": K, "U": E} for i in range(2)}
  writer = formats.Writer(path, formats.Head(layers, N, gates="none"))
  for step in range(drawn):
    of = lambda i, step=step: {
      "expert_NK": skewed(2 * step + i), "gate_NK": None,
      "margin_N": np.zeros(N), "boundary_N": np.zeros(N),
    }  # fmt: skip
    made = {name: of(i) for i, name in enumerate(layers)}
    writer.add(formats.Block(step, step, 0, np.zeros(N, int), made))
  writer.close()
  words = ["room", str(path), "--mesh=data:2,expert:4", "--eps=0.05", "--groups=8", "--inner=2"]
  assert cli.main(words) == 0
  text = capsys.readouterr().out
  needs = room.needs_of(formats.read(path), lambda e: room.of_devices(e, SIZES, E))
  top = np.ceil(100 * room.promised(needs[: drawn // 2].ravel(), 0.05)) / 100
  beyond = (needs[drawn // 2 :] > top).sum()
  assert f"{beyond} of {drawn}" in text and f"{top:.2f})'" in text
  assert "edits[0].factor=" in text
  nodes = room.needs_of(formats.read(path), lambda e: room.of_nodes(e, SIZES, E, 2))
  top = np.ceil(100 * room.promised(nodes[: drawn // 2].ravel(), 0.05)) / 100
  assert f"--config.model.moe.dispatch.room={top:.2f}\n" in text
  assert f"{(nodes[drawn // 2 :] > top).sum()} of {drawn}" in text
  assert cli.main([*words[:3], "--eps=0.001"]) == 0
  assert f"record at least {2 * room.enough(0.001)}" in capsys.readouterr().out
  assert cli.main(["room", str(path), "--mesh=expert:3"]) == 2
  assert "cannot be cut over 3 devices" in capsys.readouterr().err
