"""Benchmarks: found by name, a table and a file, and an alarm for what became slower."""

import json

import pytest

from experiments import bench
from experiments.benches import routers, train_step
from moejax.core import config, plugin
from moejax.core.plugin import Wrong
from moejax.models import decoder
from pallas_kernels import timing
from pallas_kernels.grouped_matmul import cases


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (["groupd_matmul"], "there is no 'groupd_matmul'. Did you mean 'grouped_matmul'"),
    (["grouped_matmul", "--rund=3"], "--rund is no option"),
    (["grouped_matmul", "extra"], "'extra' is no option"),
    (["grouped_matmul", "--compare=nowhere.json"], "'nowhere.json' cannot be read"),
    (["grouped_matmul", "--cases=E31", "--allocator=system"], "no case 'E31'. Did you mean"),
    (["routers", "--routers=topq", "--allocator=system"], "no router 'topq'. Did you mean 'topk'"),
    (["train_step", "--shapes=C", "--allocator=system"], "no shape 'C'. Known: A, B, tiny"),
    (["train_step", "--who=moe,hff", "--allocator=system"], "no 'hff'. Did you mean 'hf'"),
  ],
)
def test_wrong_use_is_one_sentence(words, sentence):
  with pytest.raises(Wrong, match=sentence.replace("?", r"\?")):
    bench.main(words)


def test_a_benchmark_prints_writes_and_compares(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(cases, "BENCH", {"small": cases.TEST["skewed"]})
  words = ["grouped_matmul", f"--out={tmp_path}", "--rounds=2", "--allocator=system"]
  assert bench.main(words) == 0
  assert "all of dense" in capsys.readouterr().out
  path = tmp_path / "grouped_matmul.json"
  result = json.loads(path.read_text())
  assert result["rows"][0]["case"] == "small" and result["rows"][0]["ours all ms"] > 0
  result["rows"][0]["ours temp MB"] = -1.0  # less than anything needs
  path.write_text(json.dumps(result))
  assert bench.main([*words, f"--compare={path}"]) == 1
  assert "worse: small: ours temp MB -1.0 ->" in capsys.readouterr().out


def test_the_dense_twin_has_the_active_flops_of_the_moe():
  shape = {"experts": 8, "k": 2, "hidden": 16}
  models = [config.resolve(train_step.section(w, shape, "float32")).model for w in ("moe", "dense")]
  moe, dense = (decoder.flops(model, 256) for model in models)
  router = 2.0 * train_step.D * shape["experts"] * train_step.LAYERS
  assert moe - router == dense


def test_turns_are_taken_and_a_slow_program_runs_once():
  runs = {"quick": 0, "slow": 0}

  def program(name):
    runs[name] += 1

  programs = {name: (lambda name=name: program(name)) for name in runs}
  assert set(timing.in_turns(programs, rounds=3, patience=0.0)) == set(runs)
  assert runs == {"quick": 2, "slow": 2}  # one to warm up, one that took longer than no time


@pytest.mark.slow
def test_workers_take_turns():
  options = {**train_step.OPTIONS, "shapes": "tiny", "who": "moe,dense", "rounds": 1, "steps": 2}
  (row,) = train_step.run({**options, "allocator": "system"})
  assert row["moe ms"] > 0 and row["of dense"] > 0


@pytest.mark.hf
def test_transformers_takes_its_turns():
  pytest.importorskip("torch")
  options = {**train_step.OPTIONS, "shapes": "tiny", "who": "moe,hf", "rounds": 1, "steps": 2}
  (row,) = train_step.run({**options, "allocator": "system"})
  assert row["of hf"] > 0


@pytest.mark.slow
def test_every_router_is_measured_against_topk():
  sizes = {"tokens": 64, "width": 8, "experts": 8, "hidden": 8, "rounds": 2}
  rows = list(routers.run({**routers.OPTIONS, **sizes}))
  assert [row["case"] for row in rows] == [
    "topk",
    *(n for n in plugin.names("routers") if n != "topk"),
  ]
  assert all(rows[0][f"{what} of topk"] == 1.0 for what in ("route", "layer", "step"))
  assert rows[0]["router MFLOP"] == round(2e-6 * 64 * 8 * 8, 2) and rows[0]["choices"] == 2
