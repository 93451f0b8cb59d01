"""The report of single choices: flips from the traces, regret from the counterfactual."""

import json

import numpy as np
import pytest

from moejax.report import choices, page
from moejax.report.read import read
from moejax.trace import format as formats

N, HEAD = 8, {"layer_001": {"K": 1, "U": 4}, "layer_003": {"K": 2, "U": 4}}


def block(step, moved, text=5):
  """`moved` tokens of the second layer chose something else than at first."""
  base = np.array([[0, 1]] * N)
  base[:moved, 1] = 3
  margin_N = np.linspace(0.0, 0.7, N)
  layer = lambda ids: {
    "expert_NK": ids, "gate_NK": None, "margin_N": margin_N, "boundary_N": margin_N
  }  # fmt: skip
  layers = {"layer_001": layer(base[:, :1]), "layer_003": layer(base)}
  return formats.Block(step, 0, text, np.arange(N) % 2, layers)


@pytest.fixture
def run(tmp_path):
  rows = [{"kind": "train", "step": s, "loss": 3.0} for s in (1, 30)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path


def write(run, name="stage_0.trace", steps=((10, 0), (20, 4), (30, 4)), split="validation", text=5):
  head = formats.Head(HEAD, N, "none", ("fruit", "tools"), {"split": split})
  writer = formats.Writer(run / "traces" / name, head)
  for step, moved in steps:
    writer.add(block(step, moved, text))
  writer.close()
  return run / "traces" / name


def lines(plot):
  return [line.get_xydata().tolist() for line in plot.figure.axes[0].get_lines()]


def test_flips_are_those_between_steps_of_the_same_text(run):
  write(run)
  write(run, "b.trace", ((10, 0), (30, 0)), text=6)  # other text, whose pair is of other steps
  write(run, "c.trace", ((10, 0), (20, 8)), split="train")
  plots, (margins, labels), notes = choices.flips(read(run))
  assert lines(plots[0]) == [
    [[20, 0], [30, 0], [30, 0]], [[20, 25], [30, 0], [30, 0]]
  ] or lines(plots[0]) == [[[20, 0], [30, 0], [30, 0]], [[20, 25.0], [30, 0], [30, 0]]]  # fmt: skip
  assert [plot.stem for plot in plots] == ["choices_flips", "choices_margins"]
  assert notes == ["The tables are of steps 20 and 30."]
  assert labels[1] == [["fruit", "0.00%", "12"], ["tools", "0.00%", "12"]]
  assert sum(int(row[2]) for row in margins[1]) == 3 * N


def test_a_trace_that_is_not_whole_is_said_and_read_as_far_as_it_goes(run):
  path = write(run)
  path.write_bytes(path.read_bytes()[:-2])
  (run / "traces" / "x.trace").write_text("no trace")
  plots, tables, notes = choices.flips(read(run))
  assert "truncated after step 20" in notes[0] and "x.trace is no trace" in notes[1]
  assert tables[1][1] == [["fruit", "16.67%", "12"], ["tools", "16.67%", "12"]]
  text = page.write(run).read_text()
  assert 'id="flips"' in text and "truncated after step 20" in text
  assert (run / "plots" / "choices_flips.png").is_file()


def test_regret_and_value_are_drawn_and_listed(run):
  assert choices.regret(read(run)) == ([], ([], []), [])
  one = dict.fromkeys(choices.COLUMNS, 0.25) | {
    "step": 30, "tokens": 3, "regrets": [0.5, 0.2, 0.0],
    "experts": {"load": [0.5, 0.25, 0.25, 0.0], "value": [0.3, 0.1, 0.0, 0.0]},
  }  # fmt: skip
  (run / "counterfactual.json").write_text(json.dumps({"layers": {"layer_003": one}}))
  plots, (head, rows), notes = choices.regret(read(run))
  assert rows == [["layer 3", "3", *["0.250"] * 9]] and len(head) == len(rows[0])
  assert notes == ["Measured at step 30; losses in nats per token."]
  assert [y for _, y in lines(plots[0])[0]] == [0.5, 0.2, 0.0]
  assert lines(plots[1])[0] == [[2.0, 0.3], [1.0, 0.1], [1.0, 0.0], [0.0, 0.0]]
  assert 'id="regret"' in page.write(run).read_text()
  (run / "counterfactual.json").write_text("{")
  assert choices.regret(read(run))[2] == ["counterfactual.json is not readable; it is left out."]
