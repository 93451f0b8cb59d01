"""A real run, if a tiny one: what it writes is documented, shown and can be sampled from."""

import re
import shutil

import pytest

from moejax import cli
from moejax.core import config
from moejax.core.plugin import Wrong
from moejax.report import keys, page
from moejax.report.read import read
from moejax.train import loop, restore

MODEL = {
  "width": 8,
  "attention": {"heads": 1, "kv_heads": 1, "head_width": 8},
  "moe": {
    "num_experts": 4, "hidden": 8, "router": {"name": "sigmoid_topk", "k": 2},
    "balance": {"switch": {"weight": 0.01}, "sign": {}}, "edits": [{"name": "skip"}],
  },
  "layers": [{"ffn": "moe"}],
}  # fmt: skip
TRAIN = {"steps": 4, "batch_size": 2, "log_every": 1, "eval_every": 2, "sample_tokens": 4}


@pytest.fixture(scope="module")
def run(two_kinds, tmp_path_factory):
  """The run directory, two kinds of text in it."""
  data = {**two_kinds, "seq_len": 32}
  cfg = config.resolve({"model": MODEL, "data": data, "train": TRAIN, "mesh": "data:1"})
  return loop.fit(cfg, tmp_path_factory.mktemp("runs") / "tiny", terminal=False).workdir


def test_every_key_of_metrics_is_documented(run):
  rows = read(run).rows
  assert {row["kind"] for row in rows} >= {"stage", "train", "eval", "domains", "done"}
  assert keys.undocumented(rows) == []


def test_every_documented_key_of_a_line_is_written(run):
  rows = {row["kind"]: row for row in read(run).rows}
  for kind in ("train", "eval", "domains", "stage", "done"):
    assert set(keys.KEYS[kind]) - {"memories"} == set(rows[kind]) - {"kind"}  # it has no memory
  never = {"spilled", "straggler"}  # its dispatch has room for all, and there is one owner
  assert set(rows["train"]["layers"]["layer_000"]) == set(keys.KEYS["layers"]) - never


def test_the_page_shows_all_that_a_run_leaves(run):
  text = page.write(run).read_text()
  words = re.findall(r'<section id="(\w+)"', text)
  assert words == ["loss", "health", "load", "final", "domains", "balance", "optimiser", "speed",
                   "sample", "config", "environment"]  # fmt: skip
  loss = read(run).evals[-1]["loss"]
  assert f"<b>{loss:.4f}</b>" in text and "fruit" in text and 'class="note"' not in text


def test_text_comes_from_the_newest_checkpoint(run, capsys):
  words = ["generate", str(run), "--prompt=apple ", "--tokens=3", "--seed=1"]
  assert cli.main(words) == 0
  first = capsys.readouterr().out
  assert first.startswith("apple ") and len(first) > len("apple \n")
  assert cli.main(words) == 0 and capsys.readouterr().out == first
  assert cli.main(["generate", str(run), "--tokens=-1"]) == 2
  assert "-1 tokens" in capsys.readouterr().err


def test_reading_a_run_leaves_its_folder_as_it_is(run, tmp_path):
  """It may be training: what it is writing, and what is damaged, is its own business."""
  copy = tmp_path / "copy"
  shutil.copytree(run, copy)
  (copy / "checkpoints" / "9").mkdir()  # newer, and without a seal
  writing = copy / "checkpoints" / "11.orbax-checkpoint-tmp"
  writing.mkdir()
  (writing / "half").write_text("half")
  listed = lambda: sorted(str(path.relative_to(copy)) for path in copy.rglob("*"))
  before = listed()
  assert restore.load(copy).step == 4
  assert listed() == before
  with pytest.raises(Wrong, match="has checkpoints .*4.*, not 9"):
    restore.load(copy, step=9)


@pytest.mark.slow
def test_the_balance_lab_replays_the_logits_of_a_run(run, tmp_path, capsys):
  words = ["--rules=sign", "--steps=5", "--speeds=0.01:0.1:2", f"--out={tmp_path}"]
  assert cli.main(["lab", run, "--batches=3", *words]) == 0
  assert "layer_000 of tiny, step 4: 3 batches of 64 tokens over 4 ids" in capsys.readouterr().out
  assert cli.main(["lab", str(tmp_path / "logits.npz"), *words]) == 0
  assert cli.main(["lab", run, "--layer=layer_007"]) == 2
  assert "'layer_007' is no MoE layer of this run; use one of layer_000" in capsys.readouterr().err
