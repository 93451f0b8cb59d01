"""FLOPs and parameters from a config, against the jaxpr and against published counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core import config, flags
from moejax.layers import experts
from moejax.models import decoder
from moejax.perf import flops, jaxpr

B, T = 2, 12


def make_model(dispatch, k, layers=("mlp", "moe", "moe"), **attention):
  moe = {
    "num_experts": 4, "hidden": 6, "router": {"name": "topk", "k": k},
    "dispatch": {"name": dispatch}, "shared": {"hidden": 3, "gate": "sigmoid"},
  }  # fmt: skip
  section = {
    "vocab": 11, "width": 8, "mlp": {"hidden": 10}, "moe": moe,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4, **attention},
    "layers": [{"ffn": ffn} for ffn in layers],
  }  # fmt: skip
  return decoder.Model(config.section("model", section))


def walked(model, train=False):
  """The jaxpr's count of the model on B sequences."""
  token_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), token_BT)
  params = variables.pop("params")
  apply = lambda params, token_BT: model.apply({"params": params, **rest}, token_BT)[0].sum()
  rest = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
  return jaxpr.flops(jax.grad(apply) if train else apply, params, token_BT)


def unseen(model, heads=2, head_width=4):
  """The scores above the diagonal, which one block of queries computes and nobody needs."""
  return len(model.cfg.layers) * B * T * 4.0 * heads * head_width * (T - 1) / 2


@pytest.fixture
def countable(monkeypatch):
  """Experts through ragged_dot: the CPU's own loops have trip counts that nobody knows yet."""
  declare, dot = experts.declare, jax.lax.ragged_dot

  def swiglu(params, rows, size_E):
    x_MD = rows.x_MD()
    h_MF = jax.nn.silu(dot(x_MD, params["wg_EDF"], size_E)) * dot(x_MD, params["wu_EDF"], size_E)
    return dot(h_MF, params["wo_EFD"], size_E)

  monkeypatch.setattr(
    experts, "declare", lambda *args: declare(*args)._replace(fn=swiglu, fused=None)
  )


@pytest.mark.parametrize(("dispatch", "k"), [("dense", 4), ("sort", 2)])
def test_the_config_counts_what_the_traced_model_computes(countable, dispatch, k):
  model = make_model(dispatch, k)
  want = B * T * flops.forward(model.cfg, T) + unseen(model)
  assert walked(model) == jaxpr.Count(want)
  trained = B * T * flops.train(model.cfg, T) + 3 * unseen(model)
  assert walked(model, train=True) == jaxpr.Count(trained)


def test_a_token_needs_only_its_own_experts():
  one, all_ = (flops.forward(make_model("sort", k=k).cfg, T) for k in (1, 4))
  assert all_ - one == 2 * 3 * (6.0 * 8 * 6)  # two MoE layers, three experts more


def test_a_query_sees_half_the_keys_on_average_or_its_window():
  dense = lambda **attention: make_model("sort", 1, ("mlp",), **attention).cfg
  keys = lambda cfg: (flops.forward(cfg, T) - flops.forward(dense(window=1), T)) / (4.0 * 2 * 4) + 1
  seen = lambda window: np.mean([min(t + 1, window) for t in range(T)])
  np.testing.assert_allclose(keys(dense()), seen(T))
  np.testing.assert_allclose(keys(dense(window=5)), seen(5))


@pytest.mark.parametrize(
  ("name", "total", "active"),
  [
    ("qwen3_30b_a3b", 30.5e9, 3.35e9),
    ("mixtral_8x7b", 46.7e9, 12.9e9),
    ("olmoe_1b_7b", 6.92e9, 1.28e9),
  ],
)
def test_published_models_have_their_published_parameters(name, total, active):
  found = flops.params(config.section("model", flags.load(f"configs/models/{name}.py")["model"]))
  np.testing.assert_allclose([found["total"], found["active"]], [total, active], rtol=5e-3)


def test_slots_of_soft_moe_are_parameters_of_the_length_of_a_sequence():
  """And expert choice, which has none, still shares out a sequence of the real length."""
  made = make_model("einsum", 2, ("moe",)).cfg
  section = config.dump(made)
  for name in ("soft", "expert_choice"):
    section["layers"][0]["ffn"]["router"] = {"name": name, "capacity_factor": 1.0}
    cfg = config.section("model", {**section, "allow_noncausal": True})
    more = flops.params(cfg, 64)["total"] - flops.params(cfg, 32)["total"]
    assert more == (32 * 8 if name == "soft" else 0)  # phi_DEC: E * C slots of width 8


def test_parameters_are_counted_on_a_mesh_that_cuts_slots(moe_model):
  """As a run does before its first step: one sequence alone could not be cut over four devices."""
  model = moe_model("topk", dispatch="all_to_all", edits=[{"name": "capacity"}])
  alone = flops.params(model.cfg, 8)
  with jax.set_mesh(jax.make_mesh((4,), ("expert",), (jax.sharding.AxisType.Auto,))):
    assert flops.params(model.cfg, 8) == alone
