"""Meshes from text, shardings from suffixes, and what cannot be cut."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moejax.core import axes, config, flags
from moejax.core.plugin import Wrong
from moejax.optim import adamw
from moejax.train import mesh, migration


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


def run_of(model, roles="", **train):
  of, roles = types.SimpleNamespace, axes.Config(experts=roles)
  return of(model=model.cfg, train=of(**train), data=of(seq_len=12), roles=roles)


def test_what_the_mesh_does_not_divide_is_refused(moe_model):
  model, made = moe_model("topk"), mesh.make("data:2,expert:4")
  mesh.check(run_of(model, batch_size=16, accumulate=2), made)
  with pytest.raises(Wrong, match=r"micro-batches of 4 rows .* cannot be cut over 8 devices"):
    mesh.check(run_of(model, batch_size=8, accumulate=2), made)
  with pytest.raises(Wrong, match="6 experts cannot be cut over expert:4; use a mesh"):
    mesh.check(run_of(moe_model("topk", num_experts=6), batch_size=8, accumulate=1), made)
  mesh.check(run_of(model, batch_size=8, accumulate=1), mesh.make("context:2"))
  mesh.check(run_of(model, batch_size=4, accumulate=2), mesh.make("data:2,context:2"))
  with pytest.raises(Wrong, match="6 rows .* that is just 2, so that context cuts rows, or a mult"):
    mesh.check(run_of(model, batch_size=6, accumulate=1), mesh.make("data:2,context:2"))
  with pytest.raises(Wrong, match="sequences of 12 cannot be cut over context:4, .* multiple of 8"):
    mesh.check(run_of(model, batch_size=8, accumulate=1), mesh.make("context:4"))


def test_roles_must_fit_the_mesh(moe_model):
  six, made = moe_model("topk", num_experts=6), mesh.make("data:4,tensor:2")
  mesh.check(run_of(six, "E:tensor,F:", batch_size=8, accumulate=1), made)
  with pytest.raises(Wrong, match="6 experts cannot be cut over data:4,tensor:2; use a mesh whose"):
    mesh.check(run_of(six, "E:data+tensor,F:", batch_size=8, accumulate=1), made)
  with pytest.raises(
    Wrong, match="E is cut over 'expert', which the mesh data:4,tensor:2 does not"
  ):
    mesh.check(run_of(six, "E:expert+tensor,F:", batch_size=8, accumulate=1), made)


def test_parameters_moments_and_state_lie_by_the_roles_in_context():
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  params = {
    "ffn": {"wg_EDF": shape(4, 8, 6), "router": {"gate_DE": shape(8, 4)}},
    "mlp": {"wi_DF": shape(8, 6)},
  }
  tx = adamw.make(adamw.Config(), lambda step: 1.0, params)
  state = {"params": params, "opt_state": jax.eval_shape(tx.init, params)}
  made = mesh.make("fsdp:2,expert:2,tensor:2")
  roles = axes.Config(experts="E:expert+tensor,F:", router="D:", attention="D:fsdp+expert")
  with axes.by_roles(roles):
    got = jax.tree.map(lambda sharding: sharding.spec, mesh.shardings(state, made))
  want = {
    "ffn": {
      "wg_EDF": P(("expert", "tensor"), "fsdp", None), "router": {"gate_DE": P(None, None)},
    },
    "mlp": {"wi_DF": P(("fsdp", "expert"), "tensor")},
  }  # fmt: skip
  assert got["params"] == got["opt_state"].mu == got["opt_state"].nu == want


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
  got = mesh.shardings(state, made)
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
  assert jax.tree.map(lambda x: x.sharding, mesh.placed(state, made)) == got
  line = "embed/table_VD: 11 is not divided by tensor:2 and stays whole"
  assert mesh.uncut(params, made) == [line]


def test_a_batch_is_cut_by_rows_over_the_token_axes():
  made = mesh.make("fsdp:2,expert:2,tensor:2")
  assert mesh.rows(made) == 4
  token_BT = np.arange(12).reshape(4, 3)
  got = mesh.batch(token_BT, made)
  assert got.sharding.spec == P(("fsdp", "expert"))
  assert {shard.data.shape for shard in got.addressable_shards} == {(1, 3)}
  np.testing.assert_array_equal(got, token_BT)


def test_owners_are_the_parts_of_all_axes_that_cut_experts():
  made = mesh.make("data:2,expert:2,tensor:2")
  words = ["--config=configs/base/decoder.py:tiny"]
  usual = config.resolve(flags.parse(words))
  folded = config.resolve(flags.parse([*words, "--config.roles.experts=E:data+expert"]))
  assert (mesh.owners(usual, made), mesh.owners(folded, made)) == (2, 4)
  assert migration.owners(folded, made) == 4
