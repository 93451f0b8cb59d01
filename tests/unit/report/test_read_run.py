"""Reading a run directory in every state that a run can leave it in."""

import json

import numpy as np
import pytest
import synthetic

from moejax.core.plugin import Wrong
from moejax.report.read import read


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(Wrong, match="has no metrics.jsonl"):
    read(tmp_path)
  with pytest.raises(Wrong, match="is no folder"):
    read(tmp_path / "absent")


def test_a_line_cut_off_by_a_kill_is_left_out_and_said(tmp_path):
  path = synthetic.directory(tmp_path)
  whole = read(path)
  assert whole.notes == []
  file = path / "metrics.jsonl"
  file.write_text(file.read_text() + '{"kind": "train", "step": 205, "lo')
  run = read(path)
  assert len(run.rows) == len(whole.rows)
  assert [n for n in run.notes if f"line {len(whole.rows) + 1}" in n and "cut off" in n]


def test_a_broken_line_in_the_middle_is_said_by_its_number(tmp_path):
  path = synthetic.directory(tmp_path, rows=synthetic.lines(20))
  lines = (path / "metrics.jsonl").read_text().splitlines()
  (path / "metrics.jsonl").write_text("\n".join([lines[0], "17", *lines[1:]]) + "\n")
  run = read(path)
  assert run.notes == ["Line 2 of metrics.jsonl is not readable; it is left out."]
  assert len(run.rows) == len(lines)


def test_steps_that_a_resumed_run_took_again_count_once(tmp_path):
  before = [{"kind": "train", "step": s, "loss": 9.0} for s in (10, 20, 30)]
  after = [{"kind": "train", "step": s, "loss": 1.0} for s in (30, 40)]
  rows = [*before, {"kind": "resume", "step": 20}, *after]
  step_S, loss_S = read(synthetic.directory(tmp_path, rows)).series("loss")
  assert step_S.tolist() == [10, 20, 30, 40]
  assert loss_S.tolist() == [9, 9, 1, 1]


def test_missing_and_non_finite_values_make_gaps(tmp_path):
  rows = [{"kind": "train", "step": s, "loss": v} for s, v in ((1, 1.0), (2, float("nan")))]
  run = read(synthetic.directory(tmp_path, [*rows, {"kind": "train", "step": 3}]))
  step_S, loss_S = run.series("loss")
  assert step_S.tolist() == [1, 2] and np.isnan(loss_S[1])
  assert run.last("perplexity", "eval") is None


def test_ids_that_did_not_exist_yet_are_nan(tmp_path):
  layer = lambda load: {"layers": {"layer_000": {"load": load}}}
  rows = [{"kind": "train", "step": 1, "layers": {}}, {"kind": "train", "step": 2, **layer([1.0])},
          {"kind": "train", "step": 3, **layer([0.25, 0.75])}]  # fmt: skip
  step_S, share_SU = read(synthetic.directory(tmp_path, rows)).load("layer_000")
  assert step_S.tolist() == [2, 3]
  np.testing.assert_array_equal(share_SU, [[1.0, np.nan], [0.25, 0.75]])


def test_the_mean_over_layers_is_that_of_the_newest_step(tmp_path):
  row = lambda step, *values: {
    "kind": "train", "step": step,
    "layers": {f"layer_{i:03d}": {"max_vio": value} for i, value in enumerate(values)},
  }  # fmt: skip
  run = read(synthetic.directory(tmp_path, [row(1, 9.0, 9.0), row(2, 1.0, 2.0)]))
  assert run.layer_mean("max_vio") == 1.5


def test_files_that_are_missing_or_broken_are_said(tmp_path):
  path = synthetic.directory(tmp_path)
  (path / "config.json").unlink()
  (path / "environment.json").write_text(json.dumps({"a": 1})[:-2])
  run = read(path)
  assert (run.config, run.environment) == ({}, {})
  assert run.notes == [
    "There is no config.json.",
    "environment.json is not readable as JSON; it is left out.",
  ]
