"""The list of components agrees with the code, and the pages made from it are fresh."""

import ast
import dataclasses
import json
import pathlib

import pytest

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.report import index, keys

DOCS = pathlib.Path(__file__).parents[3] / "docs"
CONFIGURED = [c for f in index.families() for c in index.components(f) if c.has_config]


@pytest.mark.parametrize("c", CONFIGURED, ids=lambda c: f"{c.family}/{c.name}")
def test_fields_read_from_the_text_are_those_of_the_dataclass(c):
  fields = dataclasses.fields(plugin.load(c.family, c.name).Config)
  assert [f.name for f in c.fields] == [f.name for f in fields]
  for got, want in zip(c.fields, fields, strict=True):
    if want.default is dataclasses.MISSING:
      assert got.default is None
    elif got.name in index.defaults(c.family, c.name):
      assert ast.literal_eval(got.default) == want.default


def test_every_component_says_what_it_is():
  for family in index.families():
    for c in index.components(family):
      assert c.summary.endswith((".", ":")), f"moejax/{family}/{c.name}.py"


def test_papers_may_go_over_lines_and_stop_at_the_next_field():
  doc = "X.\n\nPaper:  A 2017, arXiv:1; B 2018,\n        arXiv:2.\nPlan:   P.   State: none."
  c = index.Component("routers", "x", doc, [], True)
  assert c.says("Paper") == "A 2017, arXiv:1; B 2018, arXiv:2"
  assert (c.says("Plan"), c.says("Study")) == ("P", "")


def test_a_page_shows_docstring_and_fields():
  text = index.page("routers", "topk")
  assert text.startswith("routers/topk") and "Paper:" in text and "k: int = 2" in text


def test_a_family_is_known_by_its_last_word():
  assert index.listing("sources").startswith("data.sources\n  ")
  with pytest.raises(Wrong, match="Did you mean 'routers'"):
    index.listing("router")


def test_the_last_verdict_is_that_of_the_results(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "RESULTS", tmp_path)
  assert index.last_verdict("configs/studies/made_up.py") == ""
  result = {"verdict": "unclear: 1.0 against 1.0", "date": "2025-01-31"}
  (tmp_path / "made_up.json").write_text(json.dumps(result))
  assert index.last_verdict("configs/studies/made_up.py") == "unclear: 1.0 against 1.0 (2025-01-31)"
  assert "not run yet" in index.markdown()
  (tmp_path / "conventions.json").write_text(json.dumps(result))
  row = next(line for line in index.markdown().splitlines() if line.startswith("| [mixtral]"))
  assert "(../configs/studies/conventions.py) | configs | Mixtral: softmax over" in row
  assert row.endswith("| conventions | unclear: 1.0 against 1.0 | 2025-01-31 |")


def test_docs_are_fresh():
  made = {"papers.md": index.markdown() + "\n", "metrics.md": keys.markdown()}
  command = {"papers.md": "moejax list --markdown", "metrics.md": "moejax.report.keys"}
  for name, text in made.items():
    stale = f"docs/{name} is stale: python -m {command[name]} > docs/{name}"
    assert (DOCS / name).read_text(encoding="utf-8") == text, stale
