"""Moments and rows in the memory of the host, and what a backward pass keeps: the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, flags
from moejax.lab import plan
from moejax.layers import stack
from moejax.perf import machines
from moejax.train import phase

WORDS = [
  "--config=configs/base/decoder.py:tiny", "--config.data.seq_len=16",
  "--config.model.layers={'depth': 2}", "--config.model.moe.dispatch.name=all_to_all",
  "--config.model.moe.edits=[{'name': 'capacity', 'factor': 2.0}]",
]  # fmt: skip
SIZES = {"data": 2, "fsdp": 2, "expert": 2}


@pytest.fixture(scope="module")
def machine():
  return machines.Machine("cpu", "cpu", machines.CHIPS["h200"], jax.devices(), 8)


def steps(machine, *words, count=2):
  """The state after some steps of a run with these words, from the same start."""
  cfg = config.resolve(flags.parse([*WORDS, *words]))
  mesh = machines.mesh(machine, SIZES)
  with jax.set_mesh(mesh):
    program = phase.program(cfg, None, mesh)
    state = program.first(jnp.zeros(phase.micro_batch(cfg), int), jax.random.key(0))
    shape = (cfg.train.batch_size, cfg.data.seq_len + 1)
    for i in range(count):
      token_BT = jax.random.randint(jax.random.key(i), shape, 0, cfg.model.vocab)
      batch = {"token_BT": token_BT, "segment_BT": jnp.ones(shape, int)}
      state, seen = program.step(state, batch)
  return state, seen


def test_moments_on_the_host_leave_the_same_run(machine):
  (want, said), (got, again) = steps(machine), steps(machine, "--config.optim.offload=True")
  kind = lambda leaf: leaf.sharding.memory_kind
  run = got.opt_state.mu["layers_000_001"]["0"]
  assert {kind(leaf) for leaf in jax.tree.leaves(run["ffn"])} == {"pinned_host"}
  stays = (run["ffn_norm"]["scale_D"], got.opt_state.count, *jax.tree.leaves(got.params))
  assert "pinned_host" not in map(kind, stays)
  assert said["loss"] == again["loss"]
  near = jax.device_put(got.opt_state, jax.tree.map(lambda a: a.sharding, want.opt_state))
  same = jax.tree.map(
    lambda a, b: bool((a == b).all()), (got.params, near), (want.params, want.opt_state)
  )
  assert all(jax.tree.leaves(same))


@pytest.fixture(scope="module")
def kept_nothing(machine):
  return steps(machine, "--config.model.remat=full", count=1)


@pytest.mark.parametrize(
  "remat", [pytest.param(r, marks=() if "host" in r else pytest.mark.mesh)
            for r in stack.REMAT if r != "full"]
)  # fmt: skip
def test_what_is_kept_changes_no_number(remat, machine, kept_nothing):
  got = steps(machine, f"--config.model.remat={remat}", count=1)
  assert_close((got[0].params, got[1]["loss"]), (kept_nothing[0].params, kept_nothing[1]["loss"]))


@pytest.mark.parametrize("remat, passes", [("full", 6), ("dispatch", 4)])
def test_kept_rows_are_not_sent_again(remat, passes, machine):
  """Two ways forward and two backward; without the kept rows, the two forward ones once more."""
  cfg = config.resolve(flags.parse([*WORDS, f"--config.model.remat={remat}"]))
  mesh = machines.mesh(machine, SIZES)
  with jax.set_mesh(mesh):
    found = plan.of(cfg, machine, mesh)
  moves = [row for row in found["collectives"] if row["kind"] == "all-to-all"]
  assert sum(row["times"] for row in moves) == passes * len(cfg.model.layers)
  D, E, slots = 32, 4, 16  # 2 * 16 tokens * 2 choices / 4 experts, of the one sequence of a device
  assert sum(row["bytes"] for row in moves) == passes * 2 * 4.0 * E * slots * D


def test_a_bad_step_leaves_moments_on_the_host_as_they_were(machine):
  cfg = config.resolve(flags.parse([*WORDS, "--config.optim.offload=True"]))
  mesh = machines.mesh(machine, SIZES)
  with jax.set_mesh(mesh):
    program = phase.program(cfg, None, mesh)
    state = program.first(jnp.zeros(phase.micro_batch(cfg), int), jax.random.key(0))
    broken = jax.tree.map(lambda p: p * jnp.nan, state.params)
    shape = (cfg.train.batch_size, cfg.data.seq_len + 1)
    batch = {"token_BT": jnp.ones(shape, int), "segment_BT": jnp.ones(shape, int)}
    state, seen = program.step(dataclasses.replace(state, params=broken), batch)
  assert int(seen["bad"]) == 1
  assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(state.opt_state))
