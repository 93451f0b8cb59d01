"""Experts that move while a model trains: the same run as without, from start to resume."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, flags, tree
from moejax.core.plugin import Wrong
from moejax.perf import hlo, machines
from moejax.train import loop, migration, phase, placement

E, R, L, STEPS = 4, 2, 2, 6
PATH = ("layers_000_001", "0", "ffn")
WORDS = [
  "--config=configs/base/decoder.py:tiny", "--config.data.seq_len=8", "--config.model.width=16",
  "--config.model.attention.heads=2", "--config.model.attention.head_width=8",
  "--config.model.moe.hidden=8", f"--config.model.layers={[{'ffn': 'moe'}] * L}",
  "--config.model.moe.router.name=sigmoid_topk", "--config.model.moe.router.k=2",
  "--config.model.moe.balance={'sign': {}}", "--config.train.ema=0.9",
  "--config.optim.clip_norm=0.1", "--config.optim.weight_decay=0.5",
]  # fmt: skip
ON = [f"--config.train.placement.copies={R}", "--config.train.placement.every=2",
      "--config.train.placement.gain=0.0", "--config.train.placement.decay=0.5"]  # fmt: skip
MESHES = {"one": {"data": 1}, "owners": {"data": 2, "expert": 4}, "pairs": {"data": 4, "expert": 2},
          "fsdp": {"fsdp": 2, "expert": 2}}  # fmt: skip


def batch_of(cfg, i):
  """Text whose words change from step to step, so that loads do."""
  draw = np.random.default_rng(i)
  shape = (cfg.train.batch_size, cfg.data.seq_len + 1)
  token_BT = draw.integers(40 * i, 40 * i + 40, shape) % cfg.model.vocab
  return {"token_BT": jnp.asarray(token_BT), "segment_BT": jnp.ones(shape, int)}


def run(sizes, *words):
  """(cfg, state, what every step said, what every move said, programs compiled after the first
  step) of six steps."""
  cfg = config.resolve(flags.parse([*WORDS, *words]))
  mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), (jax.sharding.AxisType.Auto,) *
                       len(sizes), devices=jax.devices()[: np.prod([*sizes.values()])])  # fmt: skip
  with jax.set_mesh(mesh):
    made = phase.program(cfg, None, mesh)
    state = made.first(jnp.zeros(phase.micro_batch(cfg), int), jax.random.key(0))
    at = phase.Phase(0, cfg, made.model, made.first, made.step, made.step, made.template)
    placed = cfg.train.placement is not None
    mover, said, moves, compiled = placed and migration.Mover(at, mesh), [], [], []
    for i in range(STEPS):
      state, seen = made.step(state, batch_of(cfg, i))
      said.append(jax.device_get(seen))
      if placed and mover.due(i + 1):
        state, found = mover(state)
        moves.append(found)
      compiled.append(made.step._cache_size())
  return cfg, jax.device_get(state), said, moves, compiled


def by_expert(state):
  """Parameters, moments and averages in the order of experts, the other leaves as they are."""
  slot_LER = state.model_state["placement"][PATH[0]][PATH[1]][PATH[2]]["slot_ER"]

  def one(whole):
    layer = tree.at(whole, PATH)
    pick = lambda leaf: np.stack([leaf[i][slot_LER[i, :, 0]] for i in range(L)])
    return tree.put(whole, PATH, {**layer, **jax.tree.map(pick, placement.by_slot(layer))})

  trees = {"params": state.params, "ema": state.ema}
  trees |= {"mu": state.opt_state.mu, "nu": state.opt_state.nu}
  return {name: one(whole) for name, whole in trees.items()}


@pytest.fixture(scope="module")
def alone():
  """The run on one device whose experts stay."""
  return run(MESHES["one"])


@pytest.mark.parametrize("where, dispatch, stored", [
  ("one", "sort", 8), ("owners", "ragged", 8),
  pytest.param("pairs", "all_gather", 4, marks=pytest.mark.mesh),
  pytest.param("fsdp", "ragged", 6, marks=pytest.mark.mesh),
])  # fmt: skip
def test_a_run_whose_experts_move_is_the_run_whose_experts_stay(alone, where, dispatch, stored):
  _, want, said, _, _ = alone
  words = [*ON, f"--config.model.moe.dispatch.name={dispatch}"]
  words += [f"--config.model.moe.stored={stored}"] if stored > E else []
  words += ["--config.train.placement.owners=4"] if where == "one" else []
  _, got, again, moves, compiled = run(MESHES[where], *words)
  count = lambda seen: tree.at(seen["sums"], PATH)["count_U"]
  for one, other in zip(said, again, strict=True):
    np.testing.assert_array_equal(count(one), count(other))
    for name in ("loss", "grad_norm"):
      assert one[name] == pytest.approx(other[name], rel=2e-5)
  assert_close(by_expert(got), by_expert(want))
  assert_close(got.model_state["router_state"], want.model_state["router_state"])
  assert sum(one["moved"] for found in moves for one in found.values()) >= 2 * L, "it must move"
  assert all(one["after"] <= one["before"] for found in moves for one in found.values())
  assert compiled[0] == compiled[-1] == 1, "a table is an argument of the step"
  slot_LER = tree.at(got.model_state["placement"], PATH)["slot_ER"]
  for leaf in placement.by_slot(tree.at(got.params, PATH)).values():
    for i, e in itertools.product(range(L), range(E)):
      np.testing.assert_array_equal(*leaf[i, slot_LER[i, e]])


def test_loads_are_averages_of_the_choices(alone):
  _, state, said, _, _ = run(MESHES["one"], *ON[1:], "--config.train.placement.every=100")
  load_LE = np.zeros((L, E))
  for seen in said:
    load_LE = 0.5 * load_LE + 0.5 * tree.at(seen["sums"], PATH)["count_U"]
  got = tree.at(state.model_state["placement"], PATH)
  np.testing.assert_allclose(got["load_E"], load_LE, rtol=1e-6)
  assert got["slot_ER"].tolist() == [[[e] for e in range(E)]] * L
  assert_close(state.params, alone[1].params)


@pytest.mark.parametrize("stored", [6, 8])
def test_only_rows_of_further_copies_travel(stored):
  """S - E rows of each leaf, once for gradients and once for parameters."""
  D, F, owners = 8, 16, 2
  mesh = jax.make_mesh((owners,), ("expert",), (jax.sharding.AxisType.Auto,))
  to = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  layer = {"wg_EDF": (D, F), "wo_EFD": (F, D)}
  stack = {name: jax.ShapeDtypeStruct((L, stored, *shape), jnp.float32, sharding=to(None, "expert"))
           for name, shape in layer.items()}  # fmt: skip
  slot_LER = jax.ShapeDtypeStruct((L, E, R), jnp.int32, sharding=to())
  for fn in (placement.summed, placement.copied):
    with jax.set_mesh(mesh):
      program = jax.jit(jax.vmap(fn), out_shardings=to(None, "expert"))
      text = program.lower(stack, slot_LER).compile().as_text()
    found = hlo.totals(hlo.collectives(text))
    assert found == {"all-reduce": 4.0 * L * (stored - E) * 2 * D * F}


def test_owners_are_renamed_so_that_few_experts_move():
  """No renaming of owners and slots does better, by all of them."""
  draw = np.random.default_rng(0)
  owners, stored, copies = 3, 9, 2
  for _ in range(5):
    old_ER, new_ER = (placement.assigned(draw.random(6), owners, stored, copies) for _ in "ab")
    got_ER = placement.nearest(new_ER, old_ER, owners, stored)
    old_OS, new_OS, got_OS = (placement.held(a, stored).reshape(owners, -1)
                              for a in (old_ER, new_ER, got_ER))  # fmt: skip
    sets = lambda held_OS: sorted(tuple(sorted(held)) for held in held_OS.tolist())
    assert sets(got_OS) == sets(new_OS)
    same = lambda new_OS, old_OS=old_OS: sum(
      len({*new} & {*old}) for new, old in zip(new_OS.tolist(), old_OS.tolist(), strict=True)
    )
    best = max(same(new_OS[list(order)]) for order in itertools.permutations(range(owners)))
    assert np.sum(got_OS == old_OS) >= best  # an owner may keep two copies of one expert
    load_E = draw.random(6)
    assert placement.straggler(load_E, got_ER, owners, stored) == pytest.approx(
      placement.straggler(load_E, new_ER, owners, stored)
    )


def test_tables_grow_and_shrink_with_the_copies_of_a_stage():
  cfg = config.resolve(flags.parse([*WORDS, *ON, "--config.model.moe.stored=8"]))
  slot_LER = jnp.broadcast_to(jnp.array([[3], [1], [0], [2]]), (L, E, 1))
  plain = {"placement": tree.put({}, PATH, {"slot_ER": slot_LER}), "params": {}}
  wide = migration.started(plain, cfg.train.placement, cfg.model)
  here = tree.at(wide["placement"], PATH)
  assert here["slot_ER"].tolist() == [[[3, 3], [1, 1], [0, 0], [2, 2]]] * L
  assert here["load_E"].shape == (L, E) and not here["load_E"].any()
  narrow = migration.started(wide, None, cfg.model)
  assert tree.at(narrow["placement"], PATH)["slot_ER"].tolist() == slot_LER.tolist()
  assert migration.started({"params": {}}, None, config.resolve(
    {"model": {"vocab": 8, "layers": [{"ffn": "mlp"}]}}).model) == {"params": {}}  # fmt: skip


def refused(*words, sizes=None):
  machine = machines.Machine("cpu", "cpu", machines.CHIPS["h200"], jax.devices(), 8)
  cfg = config.resolve(flags.parse([*WORDS, *ON, *words]))
  mesh = machines.mesh(machine, sizes or {"data": 2, "expert": 4})
  with jax.set_mesh(mesh):
    phase.program(cfg, None, mesh)


def test_what_cannot_be_placed_is_refused_in_a_sentence():
  with pytest.raises(Wrong, match="4 experts with up to 2 copies cannot fill 12 slots of 4 owners"):
    refused("--config.model.moe.stored=12")
  with pytest.raises(Wrong, match="cannot fill 6 slots of 4 owners; use a multiple of the owners"):
    refused("--config.model.moe.stored=6")
  with pytest.raises(Wrong, match="train.placement: no layer has experts; set it to None"):
    refused("--config.model.layers=[{'ffn': 'mlp'}]")
  for field, value in (("every", 0), ("copies", 0), ("owners", 0), ("decay", 1.0), ("gain", -1.0)):
    with pytest.raises(Wrong, match=f"placement: .*{field} is {value}"):
      refused(f"--config.train.placement.{field}={value}")


def fit(two_kinds, workdir, **changes):
  """A run of eight steps over owners; experts move after every third, before its checkpoint."""
  section = flags.parse([*WORDS, *ON, "--config.model.moe.stored=8", "--config.train.steps=8",
                         "--config.model.moe.dispatch.name=ragged",
                         "--config.train.placement.every=3", "--config.train.checkpoint_every=3",
                         "--config.train.log_every=1", "--config.train.sample_tokens=0",
                         "--config.train.keep=5"])  # fmt: skip
  section = config.merge(section, {"data": two_kinds, "mesh": "data:2,expert:4", **changes})
  return loop.fit(config.resolve(section), workdir, terminal=False)


def lines(workdir, kind):
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {row["step"]: row for row in rows if row["kind"] == kind}


@pytest.fixture(scope="module")
def whole(two_kinds, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, fit(two_kinds, workdir)


@pytest.fixture
def cut_off(whole, tmp_path):
  """The run as it was after its third step, with its checkpoint of it."""
  shutil.copytree(whole[0], tmp_path / "cut")
  for step in (6, 8):
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
  return tmp_path / "cut"


def test_a_resumed_run_has_the_same_bits(whole, cut_off, two_kinds):
  got, want = fit(two_kinds, cut_off).state, whole[1].state
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)
  old, new = lines(whole[0], "placement"), lines(cut_off, "placement")
  assert sorted(old) == [3, 6] and old == new
  moved = [one["moved"] for row in old.values() for one in row["layers"].values()]
  assert len(moved) == 2 * L and sum(moved) > 0


@pytest.mark.mesh
@pytest.mark.parametrize("mesh, roles", [
  ("data:4,expert:2", {}),
  ("data:2,expert:2,tensor:2", {"experts": "E:expert+tensor,F:"}),  # as many, but laid otherwise
  ("data:2,expert:2,tensor:2", {"experts": "E:expert,F:tensor"}),
])  # fmt: skip
def test_a_run_goes_on_with_other_owners(whole, cut_off, two_kinds, mesh, roles):
  got = fit(two_kinds, cut_off, mesh=mesh, roles=roles)
  assert got.metrics["loss"] == pytest.approx(whole[1].metrics["loss"], rel=1e-4)
  row = lines(cut_off, "placement")[6]["layers"]
  assert all(one["after"] <= one["before"] for one in row.values())


def test_stragglers_are_logged_as_a_loop_counts_them(whole):
  workdir, result = whole
  row, move = lines(workdir, "train")[4]["layers"], lines(workdir, "placement")[3]["layers"]
  assert set(row) == set(move) == {f"layer_{i:03d}" for i in range(L)}
  slot_LER = tree.at(result.state.model_state["placement"], PATH)["slot_ER"]
  last = lines(workdir, "train")[8]["layers"]
  for i in range(L):
    load_O = np.zeros(4)
    for e, share in enumerate(last[f"layer_{i:03d}"]["load"]):
      for slot in np.asarray(slot_LER[i, e]):
        load_O[slot // 2] += share / R
    assert last[f"layer_{i:03d}"]["straggler"] == pytest.approx(load_O.max() * 4, rel=1e-4)
