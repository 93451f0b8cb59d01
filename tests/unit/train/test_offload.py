"""Moments and rows in the memory of the host, and what a backward pass keeps: the same numbers."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, flags, memory
from moejax.core.plugin import Wrong
from moejax.lab import plan
from moejax.layers import stack
from moejax.perf import machines
from moejax.train import loop, phase

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


EXPERTS = ("--config.train.offload=experts", "--config.model.remat=full")


@pytest.mark.parametrize("how", [
  (), ("--config.train.accumulate=2", "--config.train.ema=0.9", "--config.optim.clip_norm=0.1"),
])  # fmt: skip
def test_experts_on_the_host_leave_the_same_run(machine, how):
  """To rounding: the norm of what is away is added up layer by layer."""
  words = ("--config.train.batch_size=16", "--config.model.moe.stored=8", *how)
  want, said = steps(machine, *words, "--config.model.remat=full")
  got, again = steps(machine, *words, *EXPERTS)
  at = lambda tree: tree["layers_000_001"]["0"]["ffn"]
  kind = lambda tree: {name: leaf.sharding.memory_kind for name, leaf in at(tree).items()
                       if not isinstance(leaf, dict)}  # fmt: skip
  away = dict.fromkeys(("wg_EDF", "wu_EDF", "wo_EFD"), "pinned_host")
  assert kind(got.params) == kind(got.opt_state.nu) == away
  assert got.ema is None or kind(got.ema) == away
  rest = [a for a in jax.tree.leaves(got.params) if a.sharding.memory_kind == "pinned_host"]
  assert len(rest) == len(away)
  assert float(said["loss"]) == pytest.approx(float(again["loss"]), rel=1e-6)
  assert float(said["grad_norm"]) == pytest.approx(float(again["grad_norm"]), rel=1e-6)
  assert_close(jax.device_get(got), jax.device_get(want))


def test_a_run_with_experts_on_the_host_is_resumed_and_sampled(two_kinds, tmp_path):
  """Moves, an evaluation, a checkpoint and a sample; then the same bits from the checkpoint."""
  words = ["--config.train.steps=4", "--config.train.checkpoint_every=2", "--config.train.ema=0.9",
           "--config.train.log_every=1", "--config.train.sample_tokens=3", "--config.train.keep=5",
           "--config.train.placement.every=2", "--config.train.placement.copies=2",
           "--config.train.placement.gain=0.0", "--config.model.moe.stored=8",
           "--config.model.moe.edits=[]",
           "--config.model.moe.dispatch.name=all_gather"]  # fmt: skip
  section = config.merge(flags.parse([*WORDS, *EXPERTS, *words]), {"data": two_kinds})
  cfg = config.resolve({**section, "mesh": "data:2,expert:4"})
  whole = loop.fit(cfg, tmp_path / "a", terminal=False)
  assert len((tmp_path / "a" / "sample.txt").read_text()) > len("import ")
  moves = [row for row in lines(tmp_path / "a") if row["kind"] == "placement"]
  assert any(one["moved"] for row in moves for one in row["layers"].values())
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  shutil.rmtree(tmp_path / "b" / "checkpoints" / "4")
  again = loop.fit(cfg, tmp_path / "b", terminal=False)
  assert {"resume"} <= {row["kind"] for row in lines(tmp_path / "b")}
  for a, b in zip(jax.tree.leaves(again.state), jax.tree.leaves(whole.state), strict=True):
    assert a.sharding == b.sharding
    np.testing.assert_array_equal(a, b)


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_what_cannot_be_away_is_refused(machine):
  for words in (("--config.model.remat=none",), ("--config.train.strict=True",)):
    with pytest.raises(Wrong, match="train.offload: with experts on the host, train.strict is"):
      steps(machine, *EXPERTS, *words, count=0)


def test_work_layer_by_layer_is_work_at_once():
  """Leaves on the host, and a mask and a number that are not."""
  draw = np.random.default_rng(0)
  leaf, other, mask = draw.normal(size=(3, 4, 5)), draw.normal(size=(3, 4, 5)), np.ones((3, 1, 1))
  mask[1] = 0
  fn = lambda a, b, m: (2.0 * a + b) * m
  there = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
  away = {"w_EDF": jax.device_put(jnp.asarray(leaf, jnp.float32), there)}
  here = ({"w_EDF": jnp.asarray(other, jnp.float32)}, {"w_EDF": jnp.asarray(mask, jnp.float32)})
  want = fn(leaf, other, mask)
  got = jax.jit(lambda a, *rest: memory.mapped(fn, a, *rest), out_shardings=there)(away, *here)
  np.testing.assert_allclose(got["w_EDF"], want, rtol=1e-6)
  assert got["w_EDF"].sharding.memory_kind == "pinned_host"
  total = jax.jit(lambda a, *rest: memory.squares(fn, a, *rest))(away, *here)
  assert float(total) == pytest.approx(np.sum(want**2), rel=1e-5)


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
