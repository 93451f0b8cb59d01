"""Which implementation runs: by name, by measurement, by platform, and past those that refuse."""

import json
import types

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import choose
from pallas_kernels import grouped_matmul as op

SHAPE = {"M": 64, "D": 8, "F": 8, "E": 4}
DEVICES = {
  "gpu": jax.sharding.AbstractDevice("NVIDIA H200", 132, "cuda"),
  "tpu": jax.sharding.AbstractDevice("TPU v5p", 2, "tpu"),
}


def context(platform, devices=1):
  """The mesh of a machine that is not there."""
  types_ = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((devices,), ("data",), types_, abstract_device=DEVICES[platform])
  return jax.sharding.use_abstract_mesh(mesh)


def chosen(**given):
  return choose.choose("grouped_matmul", "forward", SHAPE, "float32", **given)


@pytest.fixture
def tables(tmp_path, monkeypatch):
  """An empty folder of measurements."""
  monkeypatch.setattr(choose, "TABLES", tmp_path)
  choose.table.cache_clear()
  yield tmp_path
  choose.table.cache_clear()


def test_the_context_mesh_names_the_machine(tables):
  assert chosen() == ("xla",)
  for platform in DEVICES:
    with context(platform):
      names = [n for n in choose.ORDER[platform] if n in choose.names("grouped_matmul")]
      assert chosen() == tuple(names) and "ragged" in names


def test_kernels_are_left_out_where_the_compiler_cuts_arrays(tables):
  with context("tpu", devices=4):
    assert chosen() == ("ragged", "xla")


def test_a_measured_order_comes_first(tables):
  rows = [
    {"part": "forward", "dtype": "float32", "shape": SHAPE, "load": load, "ms": ms}
    for load, ms in [("even", {"ragged": 1.0, "xla": 2.0}), ("zipf", {"ragged": 5.0, "xla": 2.0})]
  ]
  file = choose.write("grouped_matmul", "NVIDIA H200", rows, date="2026-01-01")
  assert json.loads(file.read_text())["rows"] == rows
  with context("gpu"):
    assert chosen()[:2] == ("xla", "ragged")
    assert choose.choose("grouped_matmul", "d_lhs", SHAPE, "float32")[0] != "xla"
  assert chosen() == ("xla",)  # the CPU has no table here


def test_a_refusal_asks_the_next_one_and_a_named_one_is_final(monkeypatch):
  def refuse(*args):
    raise NotImplementedError("rows are too odd")

  modules = {"a": types.SimpleNamespace(part=refuse), "b": types.SimpleNamespace(part=lambda x: x)}
  modules["c"] = types.SimpleNamespace()
  monkeypatch.setattr(choose.importlib, "import_module", lambda name: modules[name.split(".")[-1]])
  monkeypatch.setattr(choose, "_exists", lambda op, name: name in modules)
  monkeypatch.setattr(choose, "ORDER", {"cpu": ("c", "a", "b")})
  assert choose.call("some", "part", 7, shape={}, dtype="float32") == 7
  with pytest.raises(ValueError, match="some: .*part.*a: rows are too odd.*choose another"):
    choose.call("some", "part", 7, shape={}, dtype="float32", implementation="a")
  with pytest.raises(ValueError, match="c: it is not written"):
    choose.call("some", "part", 7, shape={}, dtype="float32", implementation="c")


def test_an_unknown_name_lists_the_known_ones():
  args = (jnp.ones((3, 2)), jnp.ones((1, 2, 2)), jnp.array([3]))
  with pytest.raises(ValueError, match="no implementation 'cuda'; choose one of .*'ragged'"):
    op.grouped_matmul(*args, implementation="cuda")


def test_every_pass_of_a_program_is_by_the_implementation_of_its_machine(tables):
  def grad(x_MD, w_EDF, size_E):
    return jax.grad(lambda x, w: op.grouped_matmul(x, w, size_E).sum(), (0, 1))(x_MD, w_EDF)

  args = (jnp.ones((6, 4)), jnp.ones((2, 4, 3)), jnp.array([2, 3]))
  assert "while" in str(jax.make_jaxpr(grad)(*args))
  with context("tpu"):
    program = str(jax.make_jaxpr(grad)(*args))
    assert all(f"grouped_matmul_{part}" in program for part in ("forward", "d_lhs", "d_rhs"))
  with context("tpu", devices=2):
    assert str(jax.make_jaxpr(grad)(*args)).count("ragged_dot") >= 3
