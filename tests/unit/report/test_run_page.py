"""The page of a run: whole, self-contained, and there whatever is missing."""

import re
import xml.etree.ElementTree as ET

import pytest
import synthetic

from moejax.core.plugin import Wrong
from moejax.report import curves, page, style
from moejax.report.read import read

SECTIONS = ["loss", "health", "load", "final", "domains", "balance", "optimiser", "speed",
            "sample", "config", "environment"]  # fmt: skip


def sections(text):
  return re.findall(r'<section id="(\w+)"', text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(run directory, text of its page) with everything that there can be."""
  path = synthetic.directory(tmp_path_factory.mktemp("run"))
  return path, page.write(path).read_text()


def test_every_section_and_every_figure_is_there(whole):
  path, text = whole
  assert sections(text) == SECTIONS
  pngs = {p.stem for p in (path / "plots").iterdir()}
  assert {"loss", "router_margin", "load_layer_001", "final_load", "domains_layer_003",
          "router_bias_max", "lr", "grad_norm", "tokens_per_s", "mfu"} <= pngs  # fmt: skip
  assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (path / "plots").iterdir())


def test_the_page_loads_nothing(whole):
  links = re.findall(r'(?:src|href)="([^"]*)"', whole[1])
  assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
  assert "<script" not in whole[1] and "@import" not in whole[1]
  assert "default-src 'none'" in whole[1]


def test_figures_are_sound_xml_with_ids_of_their_own_and_the_colours_of_the_theme(whole):
  figures = re.findall(r"<svg.*?</svg>", whole[1], re.S)
  assert len(figures) > 12
  ids = [i for svg in figures for i in re.findall(r'\bid="([^"]+)"', svg)]
  assert len(ids) == len(set(ids))
  for svg in figures:
    ET.fromstring(svg)
    assert "var(--ink)" in svg and style.C["ink"] not in svg
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)


def test_the_numbers_of_the_run_stand_at_the_top(whole):
  run = read(whole[0])
  head = whole[1].partition("<section")[0]
  assert f"<b>{run.evals[-1]['loss']:.4f}</b>" in head
  assert f"<b>{run.evals[-1]['bits_per_byte']:.3f}</b>" in head
  assert "<b>4.2M / 1.6M</b>" in head and "<b>1 min 36 s</b>" in head
  assert "Finished after 200 steps." in head


def test_text_of_the_run_is_escaped(whole):
  assert "return &lt;not a real sample&gt; &amp; more" in whole[1]


def test_what_differs_from_a_default_stands_out(whole):
  marked = re.findall(r'<div class="set">([^<]*)</div>', whole[1])
  assert "k: 4" in marked and "seq_len: 128" in marked
  assert "renormalise: true" not in marked and "validation: 0.05" not in marked
  assert "layers[1..3]" in whole[1] and "stages: []" not in marked and "knobs: {}" not in marked


def test_silence_is_a_sentence_not_a_figure(whole):
  assert "No expert was ever dead, no choice was ever dropped." in whole[1]
  assert not (whole[0] / "plots" / "router_dead.png").exists()


NO_ROUTERS = [s for s in SECTIONS if s not in ("health", "load", "final", "domains", "balance")]
ONE = ("layer_000",)
PARTIAL = {
  "nothing logged": ([], ["sample", "config", "environment"]),
  "dense": (synthetic.lines(60, layers=(), labels=()), NO_ROUTERS),
  "one line": (synthetic.lines(60, layers=ONE)[1:2], [s for s in SECTIONS if s != "domains"]),
  "no labels, no controller": (
    synthetic.lines(60, layers=ONE, labels=(), controller=False),
    [s for s in SECTIONS if s not in ("domains", "balance")],
  ),
  "only an evaluation": (
    [{"kind": "eval", "step": 0, "loss": 7.0}],
    ["loss", "sample", "config", "environment"],
  ),
  "nothing finite": (
    [{"kind": "train", "step": s, "loss": float("nan"), "lr": 1e-3} for s in (1, 2)],
    ["loss", "optimiser", "sample", "config", "environment"],
  ),
}


@pytest.mark.parametrize("rows, want", PARTIAL.values(), ids=PARTIAL)
def test_what_is_missing_is_left_out(tmp_path, rows, want):
  text = page.write(synthetic.directory(tmp_path, rows)).read_text()
  assert sections(text) == want


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path):
  rows = [*synthetic.lines(60)[:-1], {"kind": "resume", "step": 60}]
  run = read(synthetic.directory(tmp_path, rows))
  assert page.state(run) == "Not finished: step 60 of 200 was the last logged, resumed once."


def test_stages_are_named_where_they_start(tmp_path):
  rows = [*synthetic.lines(60, layers=(), labels=())]
  rows.append({"kind": "stage", "stage": 1, "step": 30, "name": "four experts"})
  text = page.write(synthetic.directory(tmp_path, rows)).read_text()
  assert text.count("four experts") >= 4


def test_a_knob_has_a_figure_if_it_turns(tmp_path):
  rows = [{"kind": "train", "step": s, "knobs": {"still": 1.0, "k": [2, 4 - s]}} for s in (1, 2)]
  plots = curves.knobs(read(synthetic.directory(tmp_path, rows)))
  assert [plot.stem for plot in plots] == ["knob_k"]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
  path = synthetic.directory(tmp_path, synthetic.lines(20, layers=(), labels=()))
  (path / "plots").write_text("a file where a folder should be")
  with pytest.raises(Wrong, match="plots cannot be written"):
    page.write(path)
  assert not (path / "report.html").exists()
