"""Several runs in one page."""

import json
import re

import numpy as np
import pytest
import synthetic

from moejax.core.plugin import Wrong
from moejax.report import compare
from moejax.report.read import read


def pair(tmp_path):
  """Two runs of one name: the second longer, with a lower loss and another seed."""
  short = synthetic.directory(tmp_path / "a", synthetic.lines(100, layers=(), labels=()), "run")
  rows = synthetic.lines(200, layers=(), labels=())
  for row in rows:
    if row["kind"] == "eval":
      row["loss"] -= 0.5
  long = synthetic.directory(tmp_path / "b", rows, "run")
  config = json.loads((long / "config.json").read_text())
  config["train"]["seed"] = 7
  (long / "config.json").write_text(json.dumps(config))
  return short, long


def test_runs_are_told_apart_and_the_best_is_bold(tmp_path):
  short, long = pair(tmp_path)
  text = compare.write([short, long], tmp_path / "comparison.html").read_text()
  final = [run.evals[-1]["loss"] for run in (read(short), read(long))]
  assert final[1] < final[0]
  assert f"<b>{final[1]:.4f}</b>" in text and f"<td>{final[0]:.4f}</td>" in text
  assert "a/run" in text and "b/run" in text
  assert len(re.findall(r'<figure class="wide">', text)) == 3


def test_config_fields_that_differ_are_listed(tmp_path):
  text = compare.write(pair(tmp_path), tmp_path / "comparison.html").read_text()
  rows = re.findall(r'<tr><td class="word">([^<]+)</td><td>([^<]*)</td><td>([^<]*)</td></tr>', text)
  assert rows == [("train.seed", "", "7")]


def test_evaluations_are_placed_by_their_step(tmp_path):
  rows = [{"kind": "train", "step": s, "loss": 1.0, "tokens": 100 * s} for s in (10, 20)]
  rows.append({"kind": "eval", "step": 15, "loss": 2.0})
  x, loss = compare.at(read(synthetic.directory(tmp_path, rows)), "tokens")
  np.testing.assert_array_equal((x, loss), ([1500], [2.0]))


def test_one_run_is_no_comparison(tmp_path):
  with pytest.raises(Wrong, match="two runs or more, 1 given"):
    compare.write([synthetic.directory(tmp_path)])
