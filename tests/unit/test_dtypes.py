"""Precision: None is by platform, the router stays float32, a wrong name is one sentence."""

import jax
import jax.numpy as jnp
import pytest

from moejax.core import dtypes
from moejax.core.plugin import Wrong


def test_everything_is_float32_on_a_cpu():
  cfg = dtypes.filled(dtypes.Config())
  assert (cfg.compute, cfg.residual, cfg.moments) == ("float32", "float32", "float32")


def test_elsewhere_compute_and_residual_are_bfloat16(monkeypatch):
  monkeypatch.setattr(dtypes.target, "platform", lambda: "tpu")
  cfg = dtypes.filled(dtypes.Config())
  assert (cfg.compute, cfg.residual, cfg.moments) == ("bfloat16", "bfloat16", "float32")


def test_the_platform_is_that_of_the_mesh_in_context(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert dtypes.filled(dtypes.Config()).compute == "bfloat16"
  with jax.set_mesh(jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))):
    assert dtypes.filled(dtypes.Config()).compute == "float32"


def test_cast_leaves_routers_and_integers_alone():
  ffn = {"router": {"gate_DE": jnp.ones((2, 3))}, "wg_EDF": jnp.ones((3, 2, 2))}
  params = {"ffn": {**ffn, "packed_EDF": jnp.ones((3, 2, 2), jnp.int8)}}
  got = dtypes.cast(params, dtypes.Config(compute="bfloat16"))["ffn"]
  assert got["router"]["gate_DE"].dtype == jnp.float32
  assert got["wg_EDF"].dtype == jnp.bfloat16
  assert got["packed_EDF"].dtype == jnp.int8


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    (dict(compute="bfloat61"), "'bfloat61' is no dtype of a run. Did you mean 'bfloat16'?"),
    (dict(params="int8"), "'int8' is no dtype of a run. Known: float32"),
    (dict(router="bfloat16"), "router is 'bfloat16', and routing flips"),
    (dict(params="float64"), "float64 is off in JAX; set JAX_ENABLE_X64=1"),
  ],
)
def test_a_wrong_dtype_is_one_sentence(fields, sentence):
  with pytest.raises(Wrong, match=sentence.replace("?", r"\?")):
    dtypes.Config(**fields)
