"""The audit agrees on meshes that are right, and sees a wrong gradient behind a right loss."""

import json

import jax
import pytest
from jax import lax

from moejax import cli
from moejax.core import cuts
from moejax.core.plugin import Failed, Wrong
from moejax.lab import audit, audit_grid, audit_report

SECTION = {
  **audit_grid.RUN,
  "model": {**audit_grid.MODEL, "layers": [{"ffn": "moe"}]},
  "data": {"seq_len": 8, "tokenizer": "bytes"},
  "train": {"batch_size": 8},
}
CELL = {"mesh": "data:2,expert:4", "dispatch": "all_gather"}


@pytest.fixture(scope="module")
def rows():
  """Rows by cell of one audit: cells share their oracle."""
  cells = [CELL, {"mesh": "data:3", "dispatch": "sort"}]
  return list(audit.run(SECTION, cells, audit_report.drawn(SECTION)))


def test_a_mesh_that_is_right_agrees_in_everything(rows):
  row = rows[0]
  assert not row.misses and row.choices > 0 and row.flipped == 0
  assert {leaf.name for leaf in row.gradients} >= {
    "layers_000_000/0/ffn/wg_EDF",
    "layers_000_000/0/ffn/router/gate_DE",
    "embed/table_VD",
  }
  assert all(leaf.size > 0 for leaf in row.gradients), "a gradient of zeros compares nothing"
  assert [leaf.name for leaf in row.state] == ["layers_000_000/0/ffn/router/bias_U"]
  assert "layers_000_000/0/ffn/count_U" in {leaf.name for leaf in row.statistics}
  assert max(leaf.error for leaf in row.gradients) < 1e-5


def test_what_a_mesh_refuses_is_a_sentence_and_no_miss(rows):
  assert "cannot be cut over 3 devices" in rows[1].refused
  assert audit_report.verdict(rows) == "1 cells agree with one device, 1 were refused"
  with pytest.raises(Wrong, match="every cell was refused"):
    audit_report.verdict(rows[1:])


def test_a_missing_sum_in_a_gradient_is_red_though_the_loss_is_right(monkeypatch):
  """Every device keeps the gradient of its own tokens and forgets what others have for them."""

  def gathered(cut, x):
    if not cut.expert:
      return x[None]
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
      return lax.all_gather(x, cut.expert)
    all_W = lax.all_gather(lax.stop_gradient(x), cut.expert)
    return all_W.at[cut.owner()].add(x - lax.stop_gradient(x))

  monkeypatch.setattr(cuts.Cut, "gathered", gathered)
  rows = list(audit.run(SECTION, [CELL], audit_report.drawn(SECTION)))
  missed = {leaf.name: leaf for leaf in rows[0].misses}
  assert rows[0].loss < 1e-5 and "loss" not in missed
  assert missed["embed/table_VD"].error > 0.05
  assert "layers_000_000/0/ffn/wg_EDF" not in missed, "of experts, all is at home"
  with pytest.raises(Failed, match="1 of 1 cells differ from one device: data:2,expert:4, all_g"):
    audit_report.verdict(rows)


def test_page_table_and_numbers_show_every_cell(rows):
  page = audit_report.page(rows)
  assert "| data:2,expert:4, all_gather |" in page and "refused [1]" in page
  assert page.endswith(f"1. {rows[1].refused}")
  numbers = json.loads(json.dumps([audit_report.plain(row) for row in rows]))
  assert numbers[0]["ok"] and numbers[0]["gradients"][0]["ratio"] == pytest.approx(1, abs=1e-4)
  assert audit_report.table(rows).row_count == 3 and audit_report.parameters(rows[0]).row_count


def test_cells_are_laid_over_the_section_and_over_what_is_written_out():
  laid = audit_grid.laid(SECTION, {"mesh": "data:8", "dispatch": "ring", "remat": "full"})
  assert laid["model"]["moe"]["dispatch"] == {"name": "ring"} and laid["mesh"] == "data:8"
  layers = [{"name": "serial", "ffn": {"name": "moe", "router": {"name": "topk"}}}]
  got = audit_grid.everywhere({"layers": layers}, "dispatch", {"name": "ring"})
  assert got["layers"][0]["ffn"]["dispatch"] == {"name": "ring"}
  titles = [audit_grid.title(cell) for cell in audit_grid.grid()]
  assert len(set(titles)) == len(titles)


def test_the_verb_says_what_is_wrong(capsys):
  assert cli.main(["list", "--config.mesh=data:2"]) == 2
  assert "list reads no config" in capsys.readouterr().err
  assert cli.main(["audit", "--config.mesh=data:2"]) == 2
  assert "0 config files were given" in capsys.readouterr().err
