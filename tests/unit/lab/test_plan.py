"""Plans, without the compilers of other machines: a step compiled for eight CPU devices, sentences,
differences, the page, the search."""

import copy
import json

import jax
import pytest

from moejax import cli
from moejax.core import config, flags
from moejax.core.plugin import Failed, Wrong
from moejax.lab import plan, plan_page, plan_search
from moejax.perf import machines
from moejax.train import mesh as meshes
from moejax.train import phase
from pallas_kernels import aot, aot_gpu

WORDS = ["--config=configs/base/decoder.py:tiny", "--config.data.seq_len=16"]
SIZES = {"data": 2, "fsdp": 2, "expert": 2}


@pytest.fixture(scope="module")
def cpu():
  """Eight CPU devices as a machine, and a run on a mesh of all of them."""
  machine = machines.Machine("cpu", "cpu", machines.CHIPS["h200"], jax.devices(), 4)
  return machine, config.resolve(flags.parse(WORDS)), machines.mesh(machine, SIZES)


@pytest.fixture(scope="module")
def made(cpu):
  machine, cfg, mesh = cpu
  with jax.set_mesh(mesh):
    found = plan.of(cfg, machine, mesh)
  return {"words": WORDS, "topology": "v5e:2x4", "mesh": "data:2,fsdp:2,expert:2",
          "params": {"total": 10**9, "active": 10**9}, **found}  # fmt: skip


def test_bytes_of_a_plan_are_those_of_the_arrays_of_a_run(cpu, made):
  _, cfg, mesh = cpu
  with jax.set_mesh(mesh):
    first = phase.program(cfg, None, mesh).first
    state = first(jax.numpy.zeros(phase.micro_batch(cfg), int), jax.random.key(0))
  on_one = lambda tree: sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )
  assert made["bytes"]["params"] == on_one(state.params)
  assert made["bytes"]["optim"] == on_one(state.opt_state)
  assert made["bytes"]["rest"] == on_one(state.model_state)
  size = made["bytes"]
  assert size["params"] + size["optim"] < size["peak"] < size["room"] and plan.fits(made)
  assert 0 < size["kept"] < size["temporary"]


def test_of_stages_it_says_how_long_they_wait_and_what_each_tick_sends():
  sizes = {"data": 2, "stage": 2, "expert": 2}
  machine = machines.Machine("cpu", "cpu", machines.CHIPS["h200"], jax.devices(), 4)
  mesh, section = machines.mesh(machine, sizes), flags.parse(WORDS)
  section.setdefault("train", {})["batch_size"] = rows = plan.smallest(section, mesh)
  with jax.set_mesh(mesh):
    cfg = config.resolve(section)
    found = plan.of(cfg, machine, mesh)
  assert rows == 8 and found["pipeline"]["bubble"] == pytest.approx(1 / 3)
  ticks, part = 3, rows // 2 // 4 * 16 * cfg.model.width * 4  # rows of a micro-batch on a device
  sent = [row for row in found["collectives"] if row["kind"] == "collective-permute"]
  sent = [row for row in sent if row["axes"] == "stage" and row["dtype"] == "f32"]
  assert [(row["times"], row["bytes"]) for row in sent] == [(2 * ticks, 2 * ticks * part)]


def test_it_says_what_moves_over_which_axes(made):
  """Experts are gathered by this dispatch: every MoE layer, forward and backward."""
  rows = {(row["kind"], row["axes"]): row for row in made["collectives"]}
  assert all(set(row["axes"].split(",")) <= set(SIZES) for row in made["collectives"])
  gathered = sum(row["bytes"] for (kind, _), row in rows.items() if kind == "all-gather")
  layers, experts = 2, 3 * 4 * 32 * 32 * 4  # MoE layers; bytes of the experts of one
  assert gathered >= 2 * layers * experts
  assert "kinds of less than 1 MiB" in plan.table(made)


def test_what_is_abstract_has_the_shapes_of_a_batch(cpu):
  _, cfg, mesh = cpu
  batch = plan.abstract_batch(cfg, mesh)
  assert {leaf.shape for leaf in batch.values()} == {(8, 17)}
  assert batch["token_BT"].sharding.shard_shape((8, 17)) == (8 // meshes.rows(mesh), 17)


def test_too_little_memory_is_told_before_anything_is_compiled(cpu, monkeypatch):
  machine, cfg, mesh = cpu
  small = machine._replace(chip=machine.chip._replace(memory=1000))
  monkeypatch.setattr(plan.compiled, "compile", None)
  with jax.set_mesh(mesh), pytest.raises(Failed, match=r"take 0\.0 GiB of a device that has 0\.0"):
    plan.of(cfg, small, mesh)


SENTENCES = {
  "shape": ("v5p", 2, "topology: 'v5p' is none; write CHIP:SIDES, such as v5p:8x8x4"),
  "chip": ("v9:2x2", 2, "topology: 'v9:2x2' is none"),
  "hosts": ("h200:8", 2, "topology: 'h200:8' has 1 sides; write h200:HOSTSxGPUS"),
  "tpu": ("v5e:2x2", 1, "topology: v5e:2x2 needs the TPU compiler; pip install 'moejax[aot]'"),
  "gpu": ("h200:1x8", 1, "topology: h200:1x8 needs the CUDA plugin of this jax; pip install"),
}


@pytest.mark.parametrize("text, code, sentence", SENTENCES.values(), ids=SENTENCES)
def test_a_topology_that_cannot_be_is_one_sentence(text, code, sentence, monkeypatch, capsys):
  monkeypatch.setattr(aot, "missing", lambda: "needs the TPU compiler; pip install 'moejax[aot]'")
  gpu = "needs the CUDA plugin of this jax; pip install 'moejax[aot-gpu]'"
  monkeypatch.setattr(aot_gpu, "missing", lambda: gpu)
  assert cli.main(["plan", *WORDS, f"--topology={text}"]) == code
  assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_a_mesh_of_another_size_and_a_missing_topology_are_refused(cpu, capsys):
  with pytest.raises(Wrong, match="'fsdp:4' has 4 devices and cpu has 8"):
    machines.mesh(cpu[0], {"fsdp": 4})
  assert cli.main(["plan", *WORDS]) == 2 and "--topology is missing" in capsys.readouterr().err
  assert cli.main(["list", *WORDS[1:]]) == 2 and "list reads no config" in capsys.readouterr().err


def test_a_plan_that_changed_says_what_in_words(made):
  assert plan_page.differences(made, made) == []
  new = copy.deepcopy(made)
  new["bytes"]["params"] += 2**30
  new["bytes"]["temporary"] = int(new["bytes"]["temporary"] * 1.01)  # within the slack
  row = {"kind": "all-gather", "axes": "fsdp", "dtype": "f64", "times": 1, "bytes": 2.0**31}
  new["collectives"].append(row)
  new["largest"].insert(0, [2**32, "f32[1024,1024,1024]"])
  said = plan_page.differences(made, new)
  assert len(said) == 3 and said[0].startswith("params: 0.000 GiB -> 1.000 GiB")
  assert said[1] == "all-gather over fsdp of f64: new 2.000 GiB"
  assert said[2] == "a value f32[1024,1024,1024] of 4.00 GiB is new among the largest"


def test_check_fails_where_a_plan_changed_and_the_page_shows_all(made, tmp_path, monkeypatch):
  path = tmp_path / "tiny.v5e.json"
  plan.write(made, str(path))
  monkeypatch.setattr(plan_page.plans, "make", lambda *args: made)
  assert plan_page.check([str(path)]) == f"{path}: the same"
  monkeypatch.setattr(plan_page.plans, "make", lambda *args: made | {"tokens": 1})
  with pytest.raises(Failed, match=r"1 of 1 plans differ(.|\n)*tokens: 128 -> 1"):
    plan_page.check([str(path)])
  page = plan_page.markdown([str(path)])
  assert "| [tiny](#tinyv5e) | v5e:2x4 | data:2, fsdp:2, expert:2 |" in page
  assert "    python -m moejax plan --config=configs/base/decoder.py:tiny" in page
  with pytest.raises(Wrong, match="there is no file"):
    plan_page.read(tmp_path / "none.json")


def test_a_search_ranks_what_fits_and_resumes(made, tmp_path, monkeypatch):
  monkeypatch.setattr(machines, "find", lambda text: machines.Machine(
    text, "cpu", machines.CHIPS["h200"], jax.devices(), 8))  # fmt: skip
  tried, out = [], tmp_path / "found.jsonl"

  def make(words, topology, mesh):
    tried.append((mesh, words[-1]))
    if mesh == "expert:1,fsdp:8":
      raise Failed("plan: too large for this machine; cut it.")
    slow = 1.0 if mesh == "expert:4,fsdp:2" else 2.0
    return made | {"seconds": {"compute": slow, "links": 0.0}}

  text = plan_search.run(WORDS, "x", str(out), make)
  lines = text.splitlines()
  assert lines[1].startswith("expert:4,fsdp:2              none") and "no: plan: too large" in text
  assert len(tried) == 9 and len(out.read_text().splitlines()) == 9  # one key head: no tensor axis
  out.write_text("\n".join(out.read_text().splitlines()[:-1]) + '\n{"mesh": "exp')
  again = plan_search.run(WORDS, "x", str(out), make)
  assert len(tried) == 10 and sorted(again.splitlines()) == sorted(lines)
  assert json.loads(out.read_text().splitlines()[0])["mesh"]
