"""Balance over a model: losses stack by stack or pooled over them, controllers layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle.balance import Seen, sign
from oracle.balance import switch as loops

from moejax.balance import switch
from moejax.core import config, plugin, runs, tree
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.train import balancing

U, K, TOKENS = 4, 2, 6
LAYERS = [0, 1, 2, 4, 5]  # the MoE layers, in two stacks


@functools.cache
def model_cfg(scope="micro_batch", rule="switch", other=U, share=None):
  """Three MoE layers, a dense one, two more with experts of another width and `other` of them."""
  balance = {
    "switch": {"weight": 0.5, "scope": scope},
    "sign": {"speed": 0.5},
    "pid": {"speed": 0.5, "expert_share": share},
  }
  layers = [{"ffn": "moe"}] * 3 + [{"ffn": "mlp"}]
  layers += [{"ffn": "moe", "moe": {"hidden": 8, "num_experts": other}}] * 2
  section = {
    "vocab": 11, "width": 8, "layers": layers, "mlp": {"hidden": 8},
    "moe": {
      "num_experts": U, "hidden": 4, "balance": {rule: balance[rule]},
      "router": {"name": "topk" if rule == "switch" else "sigmoid_topk", "k": K},
    },
  }  # fmt: skip
  return config.section("model", section)


def seen_by(layer, ids=U):
  """Random logits and choices of a layer."""
  draw = np.random.default_rng(layer)
  expert_NK = np.array([draw.permutation(ids)[:K] for _ in range(TOKENS)])
  return Seen(draw.normal(size=(TOKENS, ids)), expert_NK, np.ones(TOKENS, bool))


def sums_of(seen):
  """What the layer returns, another component's leaves among it."""
  prob_NU = jax.nn.softmax(jnp.array(seen.logit_NU, jnp.float32))
  return {
    "count_U": jnp.bincount(seen.expert_NK.ravel(), length=seen.ids).astype(jnp.float32),
    "tokens": jnp.float32(TOKENS),
    "switch/prob_U": prob_NU.sum(0),
    "capacity/dropped": jnp.int32(3),
  }


def layer_sums(cfg, ids=lambda layer: U):
  """The tree of sums that a model would return."""
  by_layer = {
    f"layer_{i:03d}": {"ffn": sums_of(seen_by(i, ids(i))) if i in LAYERS else {}} for i in range(6)
  }
  return tree.stack(by_layer, cfg)


@pytest.mark.parametrize("scope", ["micro_batch", "pooled"])
def test_the_loss_of_a_model_is_the_loop_over_its_layers(scope):
  cfg = model_cfg(scope)
  assert len(runs.find(cfg.layers, moe.Config)) == 2
  want = 0.5 * loops.loss([seen_by(i) for i in LAYERS], [], switch.Config(scope=scope))
  got = balancing.loss(layer_sums(cfg), {}, {}, cfg)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert got.dtype == jnp.float32


def test_a_knob_replaces_the_weight_of_a_rule():
  cfg = model_cfg()
  value = lambda knobs: balancing.loss(layer_sums(cfg), {}, knobs, cfg)
  np.testing.assert_allclose(value({"switch_weight": jnp.float32(1.5)}), 3 * value({}), rtol=1e-6)
  with pytest.raises(Wrong, match="knob switch_weight has 2 values"):
    value({"switch_weight": jnp.ones(2)})


def test_pooled_layers_need_as_many_experts_each():
  cfg = model_cfg("pooled", other=6)
  with pytest.raises(Wrong, match=r"switch: scope 'pooled' needs .* they have \[4, 6\]; use"):
    balancing.loss(layer_sums(cfg, lambda layer: 6 if layer > 3 else U), {}, {}, cfg)


def test_the_choices_of_earlier_micro_batches_count_in_the_scope_step_alone():
  past = lambda cfg: jax.tree.map(lambda leaf: leaf[::-1] + 1, layer_sums(cfg))
  value = lambda cfg, past: balancing.loss(layer_sums(cfg), past, {}, cfg)
  alone, step = value(model_cfg(), {}), model_cfg("step")
  np.testing.assert_allclose(value(step, {}), alone, rtol=1e-6)
  np.testing.assert_allclose(value(model_cfg(), past(model_cfg())), alone, rtol=1e-6)
  assert abs(float(value(step, past(step)) - alone)) > 1e-3


def test_controllers_move_every_layer_by_its_counts_and_its_own_knob():
  cfg = model_cfg(rule="sign")
  bias_U = np.array([0.2, 0.0, -0.1, 0.0])
  state = {f"layer_{i:03d}": {"ffn": {"router": {"bias_U": jnp.array(bias_U)}}} for i in LAYERS}
  state = {"router_state": tree.stack(state, cfg), "placement": {"x": 1}}
  speed_L = jnp.array([0.5, 0.5, 0.0, 9.0, 0.5, 2.0])
  knobs = {"bias_speed": speed_L}
  _, new = balancing.controllers({}, state, layer_sums(cfg), knobs, cfg)
  by_layer = tree.unstack(new["router_state"], cfg)
  for i in LAYERS:
    count_U = np.bincount(seen_by(i).expert_NK.ravel(), minlength=U)
    want_U = sign.update(bias_U, count_U, sign.Config(float(speed_L[i])))
    got_U = by_layer[f"layer_{i:03d}"]["ffn"]["router"]["bias_U"]
    np.testing.assert_allclose(got_U, want_U, rtol=1e-6, err_msg=f"layer {i}")
  assert new["placement"] == {"x": 1}


def test_what_a_rule_keeps_stands_beside_the_state_of_its_router():
  cfg = model_cfg(rule="pid")
  model = plugin.module(cfg).Model(cfg)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), {"router_state": shapes["router_state"]})
  _, new = balancing.controllers({}, state, layer_sums(cfg), {}, cfg)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  by_layer = tree.unstack(new["router_state"], cfg)
  for i in LAYERS:
    count_U = np.bincount(seen_by(i).expert_NK.ravel(), minlength=U)
    ffn = by_layer[f"layer_{i:03d}"]["ffn"]
    error_U = 1 / U - count_U / count_U.sum()
    np.testing.assert_allclose(ffn["pid"]["error_U"], error_U, rtol=1e-6)
    np.testing.assert_allclose(ffn["router"]["bias_U"], 0.5 * 2 * error_U, rtol=1e-6)


def test_a_share_of_the_choices_for_experts_needs_virtual_ids():
  cfg = model_cfg(rule="pid", share=0.5)
  with pytest.raises(Wrong, match="pid: expert_share 0.5 leaves .* and there are none"):
    balancing.controllers({}, {}, layer_sums(cfg), {}, cfg)


def test_a_model_without_controllers_keeps_its_state():
  cfg = model_cfg()
  params, state = {"a": 1}, {"placement": {"x": 1}}
  assert balancing.controllers(params, state, layer_sums(cfg), {}, cfg) == (params, state)
