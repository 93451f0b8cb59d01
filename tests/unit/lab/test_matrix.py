"""The conformance matrix: parts of it, what a page keeps, and that a wrong dispatch is red."""

import pytest

from moejax import cli
from moejax.core import plugin
from moejax.lab import matrix


@pytest.fixture(scope="module")
def few():
  """Cells of one router."""
  return list(matrix.cells(["topk"], ["dense", "gather", "sort"], [1], [(), ("capacity",)]))


@pytest.mark.slow
def test_cells_are_green_or_refused_with_the_sentence(few):
  assert all(cell.green for cell in few)
  refused = [(cell.dispatch, cell.edits) for cell in few if cell.refused]
  assert refused == [("gather", ())]
  exact = next(cell for cell in few if cell.dispatch == "dense")
  assert exact.error["float32"] == 0 < exact.error["bfloat16"]


@pytest.mark.slow
def test_a_section_shows_every_cell_and_a_page_takes_it_back(few):
  text = matrix.section(few)
  assert text.startswith("## topk\n\n5 green, 0 red, 1 refused;")
  assert "| none | 🟢 0e+00 / " in text and "| refused [1] |" in text
  assert "\n1. the plan has no slots, which this dispatch needs" in text
  page = matrix.page({"topk": text, "hash": "## hash\n\nold", "gone": "## gone\n\nold"})
  assert matrix.read(page) == {"topk": text, "hash": "## hash\n\nold"}
  assert list(matrix.read(page)) == ["hash", "topk"] and matrix.page(matrix.read(page)) == page


@pytest.mark.slow
def test_a_wrong_dispatch_is_red(few, monkeypatch, tmp_path, capsys):
  right = matrix.outcome

  def wrong(*arguments):
    y_ND, grads = right(*arguments)
    return y_ND * 1.01, grads

  matrix.oracle("topk", ())
  monkeypatch.setattr(matrix, "outcome", wrong)
  monkeypatch.setattr(matrix, "combinations", lambda: [()])
  words = ["matrix", "--routers=topk", "--dispatches=sort", "--devices=1"]
  assert cli.main([*words, f"--out={tmp_path}/page.md"]) == 1
  out, err = capsys.readouterr()
  assert "topk: 0 green, 1 red" in out and "1 cells are red (topk with sort)" in err
  assert "🔴" in (tmp_path / "page.md").read_text()


def test_a_name_of_nothing_is_refused(capsys):
  assert cli.main(["matrix", "--routers=topq", "--devices=1"]) == 2
  assert "routers has no 'topq'. Did you mean 'topk'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", plugin.names("routers"))
def test_every_cell_of_a_router_is_green_or_refused(name):
  red = [cell for cell in matrix.cells([name]) if not cell.green]
  assert not red, red
