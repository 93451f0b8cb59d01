"""The benchmark of kernels: what is measured is checked, chosen from, and compared with before."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_choose import context

from experiments import bench
from experiments.benches import kernels
from moejax.core.plugin import Wrong
from pallas_kernels import choose, tune
from pallas_kernels.expert_ffn import triton as ffn
from pallas_kernels.expert_ffn import tune as ffn_tune
from pallas_kernels.grouped_matmul import cases, xla
from pallas_kernels.grouped_matmul import tune as matmul_tune
from pallas_kernels.permute import triton as permute
from pallas_kernels.permute import tune as permute_tune
from pallas_kernels.routing import Rule
from pallas_kernels.routing import cases as routing_cases
from pallas_kernels.routing import triton as routing
from pallas_kernels.routing import tune as routing_tune

LIMITED = Rule(3, "sigmoid", groups=2, keep=1, best=2)
SMALL = {
  "grouped_matmul": cases.Case(23, 5, 7, 4, "zipf"),
  "permute": permute_tune.Case(23, 2, 5, 4),
  "routing": routing_tune.Case(23, routing_cases.Case(12, LIMITED, bias=True)),
  "expert_ffn": ffn_tune.Case(11, 2, 5, 7, 3),
}
LOADS = {"expert_ffn": "one_hot"}


@pytest.fixture
def tables(tmp_path, monkeypatch):
  """An empty folder of measurements, and small cases to fill it with."""
  monkeypatch.setattr(choose, "TABLES", tmp_path / "tables")
  monkeypatch.setattr(cases, "BENCH", {"small": SMALL["grouped_matmul"]})
  for op, module in (("permute", permute_tune), ("expert_ffn", ffn_tune)):
    monkeypatch.setattr(module, "BENCH", {"small": SMALL[op]})
  plain = routing_tune.Case(23, routing_cases.TEST["softmax"])  # which the library does too
  monkeypatch.setattr(routing_tune, "BENCH", {"small": plain})
  choose.table.cache_clear()
  yield tmp_path
  choose.table.cache_clear()


def test_tuning_writes_the_tables_that_are_chosen_from(tables):
  words = ["kernels", "--cases=small", f"--out={tables}/bench", "--rounds=1", "--allocator=system"]
  assert bench.main([*words, "--tune"]) == 0
  found = {file.name: json.loads(file.read_text()) for file in tables.glob("tables/*.json")}
  assert sorted(found) == sorted(f"{op}.cpu.json" for op in tune.OPS)
  for op in tune.OPS:
    table = found[f"{op}.cpu.json"]
    assert table["op"] == op and table["jax"] and table["date"] and table["cores"] > 0
    assert list(dict.fromkeys(row["part"] for row in table["rows"])) == list(
      tune.of(op).parts(True)
    )
    assert all("xla" in row["ms"] for row in table["rows"])
  rows = found["grouped_matmul.cpu.json"]["rows"]
  shape = rows[0]["shape"]
  assert shape == {"M": 23, "D": 5, "F": 7, "E": 4}
  for row in rows:
    windows = choose.config("grouped_matmul", row["part"], shape, "float32", "xla")
    assert tuple(windows) in xla.candidates(23, 4)
  ffn_rows = [r for r in found["expert_ffn.cpu.json"]["rows"] if r["part"] == "swiglu"]
  total = {name: sum(row["ms"][name] for row in ffn_rows) for name in ("xla", "composed")}
  order = choose.choose("expert_ffn", "swiglu", ffn_rows[0]["shape"], "float32")
  assert order[0] == min(total, key=total.__getitem__)
  result = json.loads((tables / "bench" / "kernels.json").read_text())
  by_case = {row["case"]: row for row in result["rows"]}
  assert by_case["grouped_matmul small forward zipf"]["of ragged"] > 0
  assert by_case["expert_ffn small swiglu zipf"]["of composed"] > 0
  assert by_case["routing small route even"]["of library"] > 0
  assert by_case["permute small tokens random"]["of scatter"] > 0
  assert all(row["rate"] > 0 and row["refused"] is None for row in result["rows"])
  before = [row | {"rate": 1e9} for row in result["rows"][:2]]
  worse = bench.compare(before, result["rows"], kernels.BETTER)
  assert len(worse) == 2 and "small forward zipf: rate 1000000000.0" in worse[0]


def test_a_setting_from_the_table_is_used_where_it_would_be_tried(tables, monkeypatch):
  shape, seen, rows = {"M": 2300, "D": 5, "F": 7, "E": 4}, [], xla._rows
  row = {"part": "forward", "dtype": "float32", "load": "even", "shape": shape}
  row |= {"ms": {"xla": 1.0}, "config": {"xla": [0, 256, 64]}}
  choose.write("grouped_matmul", "cpu", [row])
  record = lambda *args: seen.append(args[2]) or rows(*args)
  monkeypatch.setattr(xla, "_rows", record)
  for M, D in ((2300, 5), (2300, 500), (230, 5)):
    args = jnp.ones((M, D)), jnp.ones((4, D, 7)), jnp.array([0, 7, 9, 1])
    jax.eval_shape(xla.forward, *args)
  # as measured; too far away; near, but no expert of 57 rows fills a window of 256
  assert seen == [(0, 256, 64), xla.heuristic(2300, 4), xla.heuristic(230, 4)]


def test_kernels_of_gpus_read_their_settings_from_the_table(tables, monkeypatch):
  """Warps tell which."""
  made, params, S = [], permute.plgpu.CompilerParams, jax.ShapeDtypeStruct
  record = lambda **how: made.append(how["num_warps"]) or params(**how)
  monkeypatch.setattr(permute.plgpu, "CompilerParams", record)

  def traced():
    """Of both kernels; functions that are new each time, as JAX traces each of them once."""
    made.clear()
    rows, route = functools.partial(permute.rows), functools.partial(routing.route, rule=Rule(8))
    jax.eval_shape(rows, S((64, 8), "float32"), S((128,), "int32"))
    jax.eval_shape(route, S((64, 128), "float32"), S((128,), "float32"), S((64,), "bool"))
    return made[:2]

  given = {"dtype": "float32", "load": "even", "ms": {"triton": 1.0}}
  route = {"N": 64, "E": 128, "K": 8}
  with context("gpu"):
    assert traced() == [4, 4]
    rows = {"N": 64, "K": 2, "M": 128, "D": 8}
    row = given | {"part": "rows", "shape": rows, "config": {"triton": [8192, 8]}}
    choose.write("permute", "NVIDIA H200", [row])
    row = given | {"part": "route", "shape": route, "config": {"triton": [16, 2]}}
    choose.write("routing", "NVIDIA H200", [row])
    assert traced() == [8, 2]
    choose.write("routing", "NVIDIA H200", [row | {"config": {"triton": [5, 1]}}])
    assert traced() == [8, 4]  # nothing that would be tried here


def test_an_expert_ffn_reads_the_settings_of_its_kernels(tables):
  shape = {"N": 4096, "K": 2, "M": 8192, "D": 8, "F": 8, "E": 8}
  best = ffn.candidates("d_up", 1024, 2)[2]
  row = {"part": "d_up", "dtype": "bfloat16", "load": "even", "shape": shape, "ms": {}}
  choose.write("expert_ffn", "NVIDIA H200", [row | {"config": {"triton": list(best)}}])
  with context("gpu"):
    found = dict(ffn.settings(shape, "bfloat16", {"up": "given"}))
  assert found["d_up"] == best and found["up"] == "given"
  assert found["d_down"] == ffn.heuristic("d_down", 1024, 2)


def job(op, part):
  return tune.of(op).job(SMALL[op], part, [LOADS.get(op, "zipf")], "float32", False)


PARTS = [(op, part) for op in tune.OPS for part in tune.of(op).parts(False)]
KERNELS = [("expert_ffn", part) for part in ffn.PARTS]


@pytest.mark.parametrize("op, part", PARTS + KERNELS)
def test_a_wrong_result_is_told_from_a_right_one(op, part):
  made = job(op, part)
  (args,), config = made.arguments.values(), ffn.Config(16, 16, 16, 4, 2, 2)
  if (op, part) in KERNELS:
    kept = {"kept": True} if part == "up" else {}
    way = functools.partial(getattr(ffn, part), (((part, config),), True), **kept)
  else:
    way = next(iter(made.ways.values()))
  got, check = jax.jit(way)(*args), made.checked(*args)
  assert check(got) is None
  leaves, tree = jax.tree.flatten(got)
  if part == "d_act":
    leaves.pop()  # parts of the gates' gradient: how many there are depends on the setting
    tree = jax.tree.structure(leaves)
  for i, leaf in enumerate(leaves):
    off = leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf * 1.05
    assert "wrong" in str(check(jax.tree.unflatten(tree, [*leaves[:i], off, *leaves[i + 1 :]])))


def test_rows_of_no_expert_must_be_zeros():
  case = cases.Case(23, 5, 7, 4, "half")
  made = matmul_tune.job(case, "forward", ["half"], "float32", False)
  (args,) = made.arguments.values()
  right = np.array(xla.forward(*args))
  assert made.checked(*args)(jnp.asarray(right)) is None
  right[-1] += 1
  assert "wrong by" in str(made.checked(*args)(jnp.asarray(right)))
  assert made.yardsticks["dense"].ratio == {"half": 23 / 11}


def with_ways(ways, yardsticks=None):
  return job("grouped_matmul", "forward")._replace(ways=ways, yardsticks=yardsticks or {})


def test_a_program_that_does_not_do_a_shape_is_left_out():
  def refuse(a, b, size_E):
    raise NotImplementedError("rows are too odd")

  ways = {("triton", (1, 2)): refuse, ("xla", None): xla.forward}
  programs, yardsticks, refused = tune.compiled(with_ways(ways))
  assert list(programs) == [("xla", None)] and not yardsticks
  assert refused == {"triton [1, 2]": "rows are too odd"}


def test_a_yardstick_that_fails_ends_no_measurement_and_a_kernel_of_ours_does():
  def fail(a, b, size_E):
    raise TypeError("no such argument\nand more")

  _, yardsticks, refused = tune.compiled(with_ways({}, {"megablox": tune.Yardstick(fail)}))
  assert not yardsticks and refused == {"megablox": "no such argument"}
  with pytest.raises(TypeError):
    tune.compiled(with_ways({("triton", None): fail}))


def test_a_setting_must_be_faster_by_more_than_luck():
  ways = dict.fromkeys([("xla", (8,)), ("xla", (4,)), ("xla", (2,))])
  row = lambda *ms: tune.rows(
    with_ways(ways), tune.Measured({"zipf": dict(zip(ways, ms, strict=True))}, {})
  )[0]
  assert row(1.0, 0.98, 1.2)["config"] == {"xla": [8]}
  assert row(1.0, 0.9, 0.95)["config"] == {"xla": [4]}
  assert row(1.0, 0.9, 0.95)["ms"] == {"xla": 0.9}


def test_loads_that_are_tuned_together_have_the_setting_of_their_total():
  ways = dict.fromkeys([("xla", (8,)), ("xla", (4,))])
  ms = {"random": (2.0, 1.0), "zipf": (1.0, 3.0)}
  measured = {load: dict(zip(ways, times, strict=True)) for load, times in ms.items()}
  found = tune.rows(with_ways(ways), tune.Measured(measured, {}))
  assert [row["config"] for row in found] == [{"xla": [8]}] * 2
  assert [row["ms"]["xla"] for row in found] == [2.0, 1.0]


def test_packages_that_a_gpu_would_be_compared_with_are_named(monkeypatch):
  monkeypatch.setattr(matmul_tune.target, "platform", lambda: "gpu")
  monkeypatch.setattr(matmul_tune.importlib.util, "find_spec", lambda name: None)
  assert matmul_tune.absent() == ["tokamax", "torch"]


def test_a_gpu_begins_with_one_model_after_the_other(monkeypatch):
  monkeypatch.setattr(matmul_tune.target, "platform", lambda: "gpu")
  given = kernels.asked(kernels.OPTIONS)
  names = ["qwen3_30b_a3b", "qwen3_30b_a3b.down", "deepseek_v3", "deepseek_v3.down"]
  assert list(dict.fromkeys(name for _, name, *_ in given))[:4] == names
  assert [op for op, name, *_ in given if name == "deepseek_v3"] == list(tune.OPS)


def test_an_unknown_word_is_one_sentence():
  run = lambda **words: list(kernels.run({**kernels.OPTIONS, **words}))
  with pytest.raises(
    Wrong, match="bench kernels: no case 'qwen3_30b'. Did you mean 'qwen3_30b_a3b"
  ):
    run(cases="qwen3_30b")
  with pytest.raises(Wrong, match="bench kernels: no operation 'route'. Did you mean 'routing'"):
    run(ops="route")
  with pytest.raises(Wrong, match="--tune has no value; write it alone"):
    bench.main(["kernels", "--tune=yes"])
