"""Spawning: the model's function stays, moments go along, and copies differ when asked to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, tree
from moejax.core.plugin import Wrong
from moejax.grow import spawn
from moejax.models import decoder

TOKEN_BT = jax.random.randint(jax.random.key(5), (2, 6), 0, 11)
STATS = {"key": jax.random.key(7)}


def make_model(layers=("mlp",) * 3):
  section = {
    "vocab": 11, "width": 8, "mlp": {"hidden": 6},
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
    "layers": [{"ffn": ffn} for ffn in layers],
  }  # fmt: skip
  return decoder.Model(config.section("model", section))


def make_cfg(moe=None, **fields):
  moe = {"num_experts": 4, "hidden": 6, "router": {"name": "topk", "k": 2}, **(moe or {})}
  return config.section("transform", {"name": "spawn", "moe": moe, **fields})


@pytest.fixture(scope="module")
def dense():
  model = make_model()
  return model, jax.jit(model.init)(jax.random.key(1), TOKEN_BT)


@pytest.fixture(scope="module")
def spawned(dense):
  """spawned(cfg) -> (model, variables by layer, follow) after the transform; computed once."""

  @functools.cache
  def run(cfg):
    model, variables = dense
    by_layer = {name: tree.unstack(part, model.cfg) for name, part in variables.items()}
    by_layer, new_cfg, follow = spawn.apply(by_layer, model.cfg, STATS, cfg)
    return decoder.Model(new_cfg), by_layer, follow

  return run


def logits(model, variables):
  return jax.jit(lambda variables: model.apply(variables, TOKEN_BT)[0])(variables)


def test_right_after_spawning_the_function_is_the_old_one(dense, spawned):
  model, by_layer, _ = spawned(make_cfg(only=[0, 2]))
  assert [hasattr(layer.ffn, "num_experts") for layer in model.cfg.layers] == [True, False, True]
  stacked = {name: tree.stack(part, model.cfg) for name, part in by_layer.items()}
  assert_close(logits(model, stacked), logits(*dense))


def test_the_new_variables_are_exactly_those_of_the_new_model(spawned):
  model, by_layer, _ = spawned(make_cfg({"shared": {"hidden": 3}}))
  stacked = {name: tree.stack(part, model.cfg) for name, part in by_layer.items()}
  shape = lambda x: (x.shape, x.dtype)
  want = jax.eval_shape(model.init, jax.random.key(0), TOKEN_BT)
  assert jax.tree.map(shape, stacked) == jax.tree.map(shape, dict(want))
  gates = [by_layer["params"][f"layer_00{i}"]["ffn"]["router"]["gate_DE"] for i in range(3)]
  assert gates[0].std() > 0 and (gates[0] != gates[1]).any() and (gates[1] != gates[2]).any()


def test_noise_and_mask_make_the_experts_differ(dense, spawned):
  old_DF = tree.unstack(dense[1]["params"], dense[0].cfg)["layer_000"]["ffn"]["wg_DF"]
  weight = lambda cfg: spawned(cfg)[1]["params"]["layer_000"]["ffn"]["wg_EDF"]
  plain_EDF, varied_EDF = (
    np.asarray(weight(make_cfg(only=[0, 2], **how))) for how in ({}, dict(noise=0.1, masked=0.25))
  )
  np.testing.assert_array_equal(plain_EDF, np.stack([old_DF] * 4))
  kept = varied_EDF != 0
  assert 0.6 < kept.mean() < 0.9 and (kept[0] != kept[1]).any()
  noise = (varied_EDF - plain_EDF)[kept] / old_DF.std()
  np.testing.assert_allclose(noise.std(), 0.1, rtol=0.15)
  assert (varied_EDF[0] != varied_EDF[1])[kept[0] & kept[1]].all()


def test_a_share_of_each_expert_is_drawn_anew(dense, spawned):
  old_DF = tree.unstack(dense[1]["params"], dense[0].cfg)["layer_000"]["ffn"]["wg_DF"]
  _, by_layer, _ = spawned(make_cfg(only=[0, 2], redrawn=0.3))
  got_EDF = np.asarray(by_layer["params"]["layer_000"]["ffn"]["wg_EDF"])
  kept = got_EDF == np.asarray(old_DF)[None]
  assert 0.55 < kept.mean() < 0.85 and (kept[0] != kept[1]).any()
  np.testing.assert_allclose(got_EDF[~kept].std(), old_DF.std(), rtol=0.3)


def test_moments_are_copied_for_experts_and_zero_for_what_is_fresh(dense, spawned):
  _, by_layer, follow = spawned(make_cfg(only=[0, 2]))
  moments = tree.unstack(jax.tree.map(lambda x: x + 1, dense[1]["params"]), dense[0].cfg)
  got = follow(moments)
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, by_layer["params"])
  for i in (0, 2):
    ffn, want = (of[f"layer_00{i}"].pop("ffn") for of in (got, moments))
    for name in ("wg_EDF", "wu_EDF", "wo_EFD"):
      assert_close(ffn[name], jnp.stack([want[name.replace("E", "")]] * 4))
    assert not ffn["router"]["gate_DE"].any()
  assert_close(got, moments)


def test_an_average_takes_its_fresh_parts_from_the_params(dense, spawned):
  _, by_layer, follow = spawned(make_cfg(only=[0, 2]))
  old = tree.unstack(dense[1]["params"], dense[0].cfg)
  assert_close(follow(old, fresh=by_layer["params"]), by_layer["params"])


@pytest.mark.parametrize(
  ("section", "sentence"),
  [
    (dict(moe={"hidden": 5}), "layer_000, whose hidden is 6, and transform.moe.hidden is 5"),
    (dict(only=[3]), r"layers \[3\] are asked for and the dense ones are \[0, 1, 2\]"),
    (dict(masked=1.0), "masked is 1.0; noise is not negative, and the others are"),
  ],
)
def test_what_cannot_be_spawned_is_refused(spawned, section, sentence):
  with pytest.raises(Wrong, match=sentence):
    spawned(make_cfg(**section))
