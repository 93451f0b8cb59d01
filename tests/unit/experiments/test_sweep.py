"""A sweep with runs that only pretend to train: tables, resuming, failures, wrong use."""

import csv
import json

import pytest

from experiments import command, sweep
from moejax.report import read

HEAD = '''
"""A grid over learning rates."""
from configs.base import decoder, merge
'''


@pytest.fixture
def write(tmp_path):
  """write(grid, ...) -> the words of the command line for a sweep over it."""

  def one(grid, *more):
    file = tmp_path / "sweep_file.py"
    file.write_text(f"{HEAD}GRID = {grid!r}\ndef get_config():\n  return decoder.tiny()\n")
    return [f"--config={file}", f"--workdir={tmp_path / 'out'}", "--workers=2", *more]

  return one


def rows(tmp_path):
  text = (tmp_path / "out" / "results.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_sweep_fills_its_table_and_resumes(stand_in, write, tmp_path, capsys):
  argv = write({"product": [{"train.lr_peak": [0.1, 0.5]}, {"train.seed": [0, 1]}]})
  assert command.guard(sweep.main, argv) == 1  # the learning rate of 0.5 fails
  table = rows(tmp_path)
  assert [(row["name"], row["status"]) for row in table] == [
    ("lr_peak=0.1, seed=0", "done"), ("lr_peak=0.1, seed=1", "done"),
    ("lr_peak=0.5, seed=0", "failed"), ("lr_peak=0.5, seed=1", "failed"),
  ]  # fmt: skip
  assert table[0]["loss"] == 2.0 and table[0]["parameters"] == 50
  assert table[0]["curve"] == [[1e9, 3.0], [2e9, 2.1]]
  assert "the loss is not finite" in table[2]["error"]
  with open(tmp_path / "out" / "results.csv") as file:
    assert [line["train.lr_peak"] for line in csv.DictReader(file)] == ["0.1", "0.1", "0.5", "0.5"]
  assert (tmp_path / "out" / "loss_vs_compute.png").stat().st_size > 5000
  page = (tmp_path / "out" / "sweep.html").read_text()
  assert "<svg" in page and "lr_peak=0.1, seed=1" in page
  assert "4 points, 4 to run" in capsys.readouterr().out

  done = tmp_path / "out" / table[0]["run"] / "started"
  done.write_text("not again")
  more = write({"product": [{"train.lr_peak": [0.2, 0.1]}, {"train.seed": [0, 1]}]})
  assert command.guard(sweep.main, more) == 0
  assert "4 points, 2 to run" in capsys.readouterr().out
  assert done.read_text() == "not again" and len(rows(tmp_path)) == 4


def test_a_changed_base_config_runs_anew(stand_in, write, tmp_path, capsys):
  argv = write({"train.lr_peak": [0.1]})
  assert command.guard(sweep.main, argv) == 0
  assert command.guard(sweep.main, [*argv, "--config.train.steps=7"]) == 0
  assert capsys.readouterr().out.count("1 points, 1 to run") == 2


def test_a_point_that_cannot_run_is_a_row(stand_in, write, tmp_path):
  argv = write({"chain": [{"train.lr_peak": [0.1]}, {"model.width": ["wide"]}]})
  assert command.guard(sweep.main, argv) == 1
  assert [row["status"] for row in rows(tmp_path)] == ["done", "failed"]
  assert "model.width: 'wide' is not a valid" in rows(tmp_path)[1]["error"]


def test_stopping_leaves_a_table_and_says_how_to_go_on(
  stand_in, write, tmp_path, monkeypatch, capsys
):
  def interrupted(events, jobs):
    for event in events:
      if event:
        yield event
        raise KeyboardInterrupt

  monkeypatch.setattr(command, "follow", interrupted)
  argv = write({"train.lr_peak": [0.1, 0.25]})
  assert command.guard(sweep.main, argv) == 1
  assert "the same command goes on" in capsys.readouterr().err
  assert [row["status"] for row in rows(tmp_path)] == ["done", "open"]


@pytest.mark.parametrize(
  "grid, words, sentence",
  [
    ({"train.lr_peak": [0.1]}, ["--workres=2"], "Did you mean '--workers'"),
    ({"train.lr_peak": [0.1]}, ["--workers=many"], "gives --workers no number"),
    ({"train.lr_peak": [0.1]}, ["--launcher=slurm"], "launcher 'slurm' is unknown"),
    ({"train.lr_peak": [0.1]}, ["--config.train.lr_peak=1"], "the grid itself sets it"),
    ({"train.lr_peek": [0.1, 0.2]}, [], "no point of the grid can run: train: moejax.train"),
    ({"train.lr_peak": 0.1}, [], "where a list of values should be"),
  ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(write, capsys, grid, words, sentence):
  assert command.guard(sweep.main, write(grid, *words)) == 2
  assert sentence in capsys.readouterr().err


def test_a_sweep_needs_a_workdir_and_a_grid(capsys):
  assert command.guard(sweep.main, ["--config=configs/sweeps/sparsity.py"]) == 2
  assert "give --workdir=DIR" in capsys.readouterr().err
  assert command.guard(sweep.main, ["--config=configs/base/decoder.py", "--workdir=x"]) == 2
  assert "has no GRID" in capsys.readouterr().err


def test_the_sparsity_sweep_compares_equals(tmp_path):
  """Dense and MoE points of one width have the same active FFN."""
  points = sweep.plan(["--config=configs/sweeps/sparsity.py"], tmp_path)
  assert [point.series for point in points[::2]] == [
    "dense", "4 experts", "8 experts", "16 experts", "32 experts",
  ]  # fmt: skip
  assert not any(point.refused for point in points)
  for point in points:
    assert point.settings["model.mlp.hidden"] == 2 * point.settings["model.moe.hidden"]


def test_a_run_that_was_killed_is_an_open_row(stand_in, write, tmp_path):
  argv = write({"train.lr_peak": [0.1]})
  command.guard(sweep.main, argv)
  file = tmp_path / "out" / rows(tmp_path)[0]["run"] / "metrics.jsonl"
  file.write_text("\n".join(file.read_text().splitlines()[:-1]) + '\n{"kind": "do')
  assert not read.read(file.parent).kind("done")
  point = sweep.plan(argv[:1], tmp_path / "out")[0]
  assert point.row(None)["status"] == "open" and point.row(None)["loss"] == 2.0
