"""The benchmark of dispatches, which stops unless bytes between nodes are those of formulas."""

import pytest

from experiments import bench
from experiments.benches import parallel
from moejax.core.plugin import Failed, Wrong


@pytest.mark.mesh
def test_bytes_of_every_dispatch_are_those_of_the_formulas(monkeypatch):
  options = {**parallel.OPTIONS, "tokens": 256, "rounds": 1}
  rows = {row["case"]: row for row in parallel.run(options)}
  assert set(rows) == set(parallel.CASES)
  assert rows["hierarchical"]["between MB"] == rows["all_to_all"]["between MB"]
  assert rows["hierarchical"]["inside MB"] > rows["all_to_all"]["inside MB"]
  assert rows["dedup"]["between MB"] < rows["ragged"]["between MB"]
  monkeypatch.setattr(parallel, "formula", lambda *_: 1.0)
  with pytest.raises(Failed, match="ring sends .* bytes, not 1.0"):
    list(parallel.run({**options, "cases": "ring"}))


@pytest.mark.parametrize(
  "word, sentence",
  [("--cases=dedupe", "no dispatch 'dedupe'. Did you mean 'dedup'"), ("--inner=3", "nodes of 3")],
)
def test_wrong_use_is_one_sentence(word, sentence):
  with pytest.raises(Wrong, match=sentence.replace("?", r"\?")):
    bench.main(["parallel", word, "--allocator=system"])
