"""The benchmark of kernels: what is measured is checked, chosen from, and compared with before."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench
from experiments.benches import kernels
from moejax.core.plugin import Wrong
from pallas_kernels import choose
from pallas_kernels.grouped_matmul import cases, ref, tune, xla

CASE = cases.Case(23, 5, 7, 4, (3, 0, 18, 1))


@pytest.fixture
def tables(tmp_path, monkeypatch):
  monkeypatch.setattr(choose, "TABLES", tmp_path)
  monkeypatch.setattr(cases, "BENCH", {"small": cases.Case(23, 5, 7, 4, "zipf")})
  choose.table.cache_clear()
  yield tmp_path
  choose.table.cache_clear()


def test_tuning_writes_the_table_that_is_chosen_from(tables):
  words = ["kernels", "--cases=small", f"--out={tables}/bench", "--rounds=1", "--allocator=system"]
  assert bench.main([*words, "--tune"]) == 0
  (file,) = tables.glob("*.json")
  table = json.loads(file.read_text())
  assert file.name == "grouped_matmul.cpu.json" and table["jax"] and table["date"]
  assert [row["part"] for row in table["rows"]] == list(tune.PARTS)
  shape = table["rows"][0]["shape"]
  assert shape == {"M": 23, "D": 5, "F": 7, "E": 4}
  for row in table["rows"]:
    assert set(row["ms"]) == {"xla", "ragged"}
    windows = choose.config("grouped_matmul", row["part"], shape, "float32", "xla")
    assert tuple(windows) in xla.candidates(23, 4)
  result = json.loads((tables / "bench" / "kernels.json").read_text())
  assert [row["case"] for row in result["rows"]] == [f"small {p} zipf" for p in tune.PARTS]
  assert all(row["rate"] > 0 and row["of ragged"] > 0 for row in result["rows"])
  before = [row | {"rate": 1e9} for row in result["rows"]]
  worse = bench.compare(before, result["rows"], kernels.BETTER)
  assert len(worse) == 3 and "small forward zipf: rate 1000000000.0" in worse[0]


def test_a_setting_from_the_table_is_used(tables, monkeypatch):
  shape = {"M": 23, "D": 5, "F": 7, "E": 4}
  row = {"part": "forward", "dtype": "float32", "load": "even", "shape": shape}
  row |= {"ms": {"xla": 1.0}, "config": {"xla": [6, 2]}}
  choose.write("grouped_matmul", "cpu", [row])
  seen = []
  rows = xla._rows
  monkeypatch.setattr(
    xla, "_rows", lambda eq, windows, *a: seen.append(windows) or rows(eq, windows, *a)
  )
  xla.forward(jnp.ones((23, 5)), jnp.ones((4, 5, 7)), jnp.array(CASE.load))
  xla.forward(jnp.ones((2300, 500)), jnp.ones((4, 500, 7)), jnp.array(CASE.load))
  assert seen == [(6, 2), xla.heuristic(2300, 4)]  # the second is too far from what was measured


@pytest.mark.parametrize("part", tune.PARTS)
def test_a_wrong_result_is_told_from_a_right_one(part):
  a, b = tune.drawn(part, CASE, "float32")
  size_E = jnp.array(CASE.load)
  got = getattr(ref, part)(a, b, size_E)
  right = tune.expected(part, a, b, size_E)
  assert tune.wrong(got, right) is None
  assert "wrong by" in str(tune.wrong(got * 1.01, right))
  other = np.array(got)  # what belongs to the last expert alone; for rows, what belongs to none
  other[-1] += 1
  assert "wrong by" in str(tune.wrong(jnp.asarray(other), right))


def test_a_program_that_does_not_do_a_shape_is_left_out():
  def refuse(a, b, size_E):
    raise NotImplementedError("rows are too odd")

  functions = {("triton", (1, 2)): refuse, ("ref", None): ref.forward}
  programs, refused = tune._compiled(
    functions, "forward", CASE, tune.drawn("forward", CASE, "float32")
  )
  assert list(programs) == [("ref", None)] and refused == {"triton [1, 2]": "rows are too odd"}


def test_a_yardstick_that_fails_ends_no_measurement_and_a_kernel_of_ours_does():
  def fail(a, b, size_E):
    raise TypeError("no such argument\nand more")

  arrays = tune.drawn("forward", CASE, "float32")
  programs, refused = tune._compiled({("megablox", None): fail}, "forward", CASE, arrays)
  assert not programs and refused == {"megablox": "no such argument"}
  with pytest.raises(TypeError):
    tune._compiled({("triton", None): fail}, "forward", CASE, arrays)


def test_packages_that_a_gpu_would_be_compared_with_are_named(monkeypatch):
  monkeypatch.setattr(tune.target, "platform", lambda: "gpu")
  monkeypatch.setattr(tune.importlib.util, "find_spec", lambda name: None)
  assert tune.absent() == ["tokamax", "torch"]


def test_an_unknown_case_is_one_sentence():
  with pytest.raises(
    Wrong, match="bench kernels: no case 'qwen3_30b'. Did you mean 'qwen3_30b_a3b"
  ):
    list(kernels.run({**kernels.OPTIONS, "cases": "qwen3_30b"}))
  with pytest.raises(Wrong, match="--tune has no value; write it alone"):
    bench.main(["kernels", "--tune=yes"])
