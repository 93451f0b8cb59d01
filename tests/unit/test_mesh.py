"""Meshes from text, shardings from suffixes, and what cannot be cut."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from moejax.core.plugin import Wrong
from moejax.optim import adamw
from moejax.train import mesh


def test_an_empty_text_is_all_devices_on_data():
  made = mesh.make("")
  assert dict(made.shape) == {"data": 8}
  assert set(made.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_smaller_mesh_takes_the_first_devices():
  made = mesh.make("data:2, expert:2")
  assert dict(made.shape) == {"data": 2, "expert": 2}
  assert list(made.devices.ravel()) == jax.devices()[:4]


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("data:2,expart:4", r"no axis 'expart'\. Did you mean 'expert'\?"),
    ("data", "'data' gives no size; write AXIS:NUMBER"),
    ("data:0", "'data:0' gives no size"),
    ("data:2,data:2", "the axis 'data' is given twice"),
    ("data:4,expert:4", "asks for 16 devices and there are 8; ask for fewer, or set JAX_NUM_CPU"),
  ],
)
def test_a_wrong_mesh_is_one_sentence(text, sentence):
  with pytest.raises(Wrong, match=sentence):
    mesh.make(text)


def test_every_process_must_take_part(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(Wrong, match="uses 4 of 8 devices, and 2 processes must all take part"):
    mesh.make("data:4")


def test_what_the_mesh_does_not_divide_is_refused(moe_model):
  model, made = moe_model("topk").cfg, mesh.make("data:2,expert:4")
  mesh.check(made, model, batch_size=16, accumulate=2)
  with pytest.raises(Wrong, match=r"micro-batches of 4 rows \(8 in 2 parts\) cannot be cut over 8"):
    mesh.check(made, model, batch_size=8, accumulate=2)
  with pytest.raises(Wrong, match="6 experts cannot be cut over expert:4; use a mesh"):
    mesh.check(made, moe_model("topk", num_experts=6).cfg, batch_size=8)


def test_shardings_follow_suffixes_and_roles_wherever_a_leaf_is():
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  params = {
    "embed": {"table_VD": shape(11, 8)},
    "layers_000_001": {
      "0": {"router": {"gate_DE": shape(2, 8, 4)}, "ffn": {"wg_EDF": shape(2, 4, 8, 6)}}
    },
  }
  tx = adamw.make(adamw.Config(), lambda step: 1.0, params)
  state = {
    "params": params,
    "opt_state": jax.eval_shape(tx.init, params),
    "placement": {"layers_000_001": {"0": {"slot_ER": shape(2, 4, 1)}}},
  }
  made = mesh.make("fsdp:2,expert:2,tensor:2")
  got, whole = mesh.shardings(state, made)
  spec = jax.tree.map(lambda sharding: sharding.spec, got)
  want = {
    "embed": {"table_VD": P(None, "fsdp")},
    "layers_000_001": {
      "0": {
        "router": {"gate_DE": P(None, "fsdp", None)},
        "ffn": {"wg_EDF": P(None, "expert", "fsdp", "tensor")},
      }
    },
  }
  assert spec["params"] == spec["opt_state"].mu == spec["opt_state"].nu == want
  assert spec["opt_state"].count == P()
  assert spec["placement"]["layers_000_001"]["0"]["slot_ER"] == P()
  assert whole == [
    f"{tree}/embed/table_VD: 11 is not cut over tensor:2"
    for tree in ("opt_state/mu", "opt_state/nu", "params")
  ]
  assert mesh.batch(made).spec == P(("fsdp", "expert"))
