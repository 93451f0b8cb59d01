"""The conformance matrix: parts of it, what a page keeps, and that a wrong dispatch is red."""

import functools
import pathlib

import jax
import numpy as np
import pytest

import moejax
from moejax import cli
from moejax.core import plugin
from moejax.core.plan import SoftPlan
from moejax.core.plugin import Wrong
from moejax.lab import matrix
from moejax.lab import matrix_page as pages
from moejax.layers import experts

ROUTERS = plugin.names("routers")
FIRST = ("base", "biased_topk", "dense_to_sparse", "depth_averaged", "expert_choice", "soft")
ROOT = pathlib.Path(moejax.__file__).parents[1]


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
  assert "topk: 1 measured; 0 green, 1 red" in err
  assert "1 cells are red (topk with sort)" in err
  assert "🔴" in (tmp_path / "page.md").read_text()


CELLS = [
  matrix.Cell("topk", (), "gather", 8, {}, refused="no slots: 1. add some."),
  matrix.Cell("topk", (), "sort", 1, {"float32": 0.0, "bfloat16": 0.01}, 7.4),
  matrix.Cell("topk", ("capacity", "skip"), "gather", 8, {"float32": 2e-7, "bfloat16": 0.5}, 30),
  matrix.Cell("topk", ("capacity", "skip"), "sort", 1, {"float32": np.nan, "bfloat16": 0.01}, 1),
]


def test_a_section_shows_every_cell_and_a_page_takes_it_back():
  one = pages.Section("topk", CELLS, {"routers/topk": "0a1b2c3d", "dispatch/sort": "00000000"})
  text = one.text()
  assert text.startswith("## topk\n\n1 green, 2 red, 1 refused; worst error")
  assert "| edits | gather, 8 | sort, 1 |" in text
  assert "| none | refused [1] | 🟢 0e+00 / 1e-02, 7 ms |" in text
  assert "| capacity, skip | 🔴 2e-07 / 5e-01, 30 ms | 🔴 nan / 1e-02, 1 ms |" in text
  assert "\n1. no slots: 1. add some.\n" in text
  page = pages.page({"topk": one, "gone": pages.Section("gone", CELLS)})
  again = pages.read(page)
  assert list(again) == ["topk"] and again["topk"].measured == one.measured
  assert again["topk"].text() == text and pages.page(again) == page
  assert "1 routers: 1 green, 2 red, 1 refused." in page


@pytest.fixture
def small(monkeypatch):
  """A product of four cells, whose measuring is counted and always green."""
  seen = []

  def measure(*at):
    seen.append(at)
    return matrix.Cell(*at, {"float32": 0.0, "bfloat16": 0.0}, 1)

  whole = [("topk", edits, name, 1) for edits in [(), ("skip",)] for name in ("dense", "sort")]
  monkeypatch.setattr(matrix, "measure", measure)
  wanted = lambda routers=None, dispatches=None, devices=None: [
    at for at in whole if at[2] in (dispatches or ("dense", "sort"))
  ]
  monkeypatch.setattr(matrix, "product", wanted)
  return seen


def test_only_what_a_change_touches_is_measured_again(small, tmp_path, monkeypatch):
  path, sums = str(tmp_path / "page.md"), {}
  right = pages.digests
  monkeypatch.setattr(pages, "digests", lambda *names: right(*names) | sums)
  done = lambda **how: (small.clear(), pages.run(path, **how), list(small))[2]
  assert len(done()) == 4 and done() == [] and len(done(again=True)) == 4
  sums["dispatch/sort"] = "changed0"
  assert done(dispatches=["dense"]) == []
  assert done() == [("topk", (), "sort", 1), ("topk", ("skip",), "sort", 1)]
  sums["edits/skip"] = "changed0"
  assert done(dispatches=["sort"]) == [("topk", ("skip",), "sort", 1)]
  assert done() == [("topk", ("skip",), "dense", 1), ("topk", ("skip",), "sort", 1)]
  sums["routers/topk"] = "changed0"
  assert len(done()) == 4 and done() == []


def test_few_cells_are_tried_after_a_change(monkeypatch):
  """Of a page that is up to date none; of a changed dispatch those of one router for each K."""
  right, sums = pages.digests, {}
  monkeypatch.setattr(pages, "digests", lambda name: right(name) | sums)
  all_of = lambda name: [matrix.Cell(*at, {}, refused="so") for at in matrix.product([name])]
  measured = {name: pages.Section(name, all_of(name), right(name)) for name in ROUTERS}
  assert pages.touched(measured) == []
  sums["dispatch/sort"] = "changed0"
  found = pages.touched(measured)
  assert {at[0] for at in found} == {*FIRST} and {at[2] for at in found} == {"sort"}
  assert {at[1] for at in found} == {(), ("capacity",)} and len(found) == len(FIRST) * 2 * 2
  sums.clear()
  measured["topk"].measured["routers/topk"] = "other000"
  assert {at[0] for at in pages.touched(measured)} == {"topk"}
  measured.pop("hash")
  assert {at[0] for at in pages.touched(measured)} == {"topk", "hash"}
  sums["edits/skip"] = "changed0"
  assert {at[1] for at in pages.touched(measured) if at[0] == FIRST[0]} == {
    ("skip",), ("capacity", "skip"),
  }  # fmt: skip


def test_a_page_that_was_cut_off_goes_on(small, tmp_path, monkeypatch):
  path = tmp_path / "page.md"
  pages.run(str(path))
  text = path.read_text()
  path.write_text(text.replace("| 🟢 0e+00 / 0e+00, 1 ms |", "|  |", 1))
  small.clear()
  pages.run(str(path))
  assert small == [("topk", (), "dense", 1)] and path.read_text() == text


def test_a_name_of_nothing_is_refused(capsys):
  assert cli.main(["matrix", "--routers=topq", "--devices=1"]) == 2
  assert "routers has no 'topq'. Did you mean 'topk'?" in capsys.readouterr().err
  assert cli.main(["matrix", "--routers=topk", "--devices=3"]) == 2
  assert "there is no column of 3 devices; use 1, 8." in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in plugin.names("dispatch") if n != "einsum"])
@pytest.mark.parametrize("devices", matrix.DEVICES)
def test_a_mixture_is_refused_while_it_is_traced(name, devices):
  """By every dispatch but einsum, on a mesh as on one device."""
  module, mixture_NEC = plugin.load("dispatch", name), np.ones((8, 4, 1), np.float32)
  plan = SoftPlan(mixture_NEC, mixture_NEC, groups=8)
  params = {"wg_EDF": (4, 2, 2), "wu_EDF": (4, 2, 2), "wo_EFD": (4, 2, 2)}
  gated = experts.gated({leaf: np.ones(shape, np.float32) for leaf, shape in params.items()})
  with jax.set_mesh(matrix.mesh(devices)):
    with pytest.raises(Wrong, match="mixes tokens instead of choosing some; use the dispatch 'ein"):
      jax.eval_shape(lambda x_ND: module.run(plan, x_ND, gated, module.Config()), np.ones((8, 2)))


@functools.cache
def touched():
  """The cells that a change touched since the page was made; none where there is no page."""
  page = ROOT / "docs" / "conformance.md"
  return pages.touched(pages.load(page)) if page.exists() else []


@pytest.mark.parametrize("name", plugin.names("routers"))
def test_the_pairs_that_a_change_touches_are_green(name):
  red = [
    cell for cell in (matrix.measure(*at) for at in touched() if at[0] == name) if not cell.green
  ]
  assert not red, red


@pytest.mark.slow
def test_the_page_has_every_cell_of_today_and_none_is_red():
  sections = pages.load(ROOT / "docs" / "conformance.md")
  for name in plugin.names("routers"):
    stale = sections.get(name, pages.Section(name)).stale(matrix.product([name]))
    assert not stale, f"{name}: {len(stale)} cells are missing or old; run python -m moejax matrix"
    red = [cell for cell in sections[name].cells.values() if not cell.green]
    assert not red, red


@pytest.mark.slow
@pytest.mark.parametrize("name", plugin.names("routers"))
def test_every_cell_of_a_router_is_green_or_refused_as_the_page_says(name):
  known = pages.load(ROOT / "docs" / "conformance.md")[name].cells
  for cell in matrix.cells([name]):
    assert cell.green and cell.refused == known[cell.at].refused, cell
