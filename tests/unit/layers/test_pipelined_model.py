"""A decoder on stages against the same without a mesh: all it returns, and all gradients."""

import functools

import eight
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, plugin
from moejax.core.plan import RouterInputs
from moejax.lab import audit_grid

B, T = 8, 6
MOE = {
  "num_experts": 4, "hidden": 8, "groups": 4,  # of two rows each
  "router": {"name": "sigmoid_topk", "k": 2}, "edits": [{"name": "capacity", "factor": 1.0}],
  "balance": {"switch": {"scope": "group"}}, "dispatch": {"name": "gather"},
}  # fmt: skip


def model(pipeline, remat="none", **moe):
  section = {
    **audit_grid.MODEL, "moe": {**MOE, **moe}, "remat": remat, "pipeline": pipeline,
    "layers": [{"ffn": "mlp"}, *[{"ffn": "moe"}] * 4],
  }  # fmt: skip
  cfg = config.resolve({"model": section}).model
  return plugin.module(cfg).Model(cfg)


def inputs():
  """What a model may be given besides tokens: by token, by layer and token, by layer."""
  draw, N = np.random.default_rng(0), B * T
  forced_LNK = np.where(
    draw.random((5, N, 2)) < 0.3, draw.permuted(np.tile(range(4), (5, N, 1)), axis=2)[..., :2], -2
  )
  fields = {
    "segment_N": jnp.tile(jnp.repeat(jnp.array([1, 2]), T // 2), B),
    "valid_N": jnp.asarray(draw.random(N) < 0.9),
    "label_N": jnp.asarray(draw.integers(0, 3, N)), "labels": 3,
    "forced_NK": jnp.asarray(forced_LNK), "knobs": {"k_active": jnp.array([2, 1, 2, 2, 1])},
    "taps": ("label_count_YU", "expert_NK", "margin_N"),
  }  # fmt: skip
  return jnp.asarray(draw.integers(0, 32, (B, T))), RouterInputs(**fields)


def outcome(model, variables):
  """((loss, all that the model returns), gradients)."""
  token_BT, ctx = inputs()

  def loss(params):
    logits, sums = model.apply({**variables, "params": params}, token_BT, ctx)
    scope = sums["layers_001_004"]["0"]["ffn"]["switch/loss_sum"]
    return jnp.sin(logits).mean() + (scope**2).sum(), (logits, sums)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@functools.cache
def alone():
  """(variables, what they give on one device)."""
  one = model({})
  variables = one.init(jax.random.key(0), inputs()[0])
  variables = {**variables, "params": drift(variables["params"])}
  return variables, outcome(one, variables)


def drift(params):
  """The parameters off their start, where some are equal in all layers."""
  leaves, tree = jax.tree.flatten(params)
  draw = np.random.default_rng(1)
  return tree.unflatten([leaf + 0.1 * draw.normal(size=leaf.shape).astype("f4") for leaf in leaves])


@pytest.mark.parametrize(
  ("sizes", "pipeline", "remat"),
  [
    ({"stage": 2}, {"rounds": 2}, "none"),
    pytest.param({"stage": 2, "data": 2}, {}, "none", marks=pytest.mark.mesh),
    pytest.param({"stage": 2, "tensor": 2}, {"rounds": 2}, "plan", marks=pytest.mark.mesh),
    pytest.param({"stage": 2, "expert": 2}, {"microbatches": 2}, "full", marks=pytest.mark.mesh),
  ],
)
def test_stages_change_nothing_that_a_model_returns(sizes, pipeline, remat):
  variables, want = alone()
  with jax.set_mesh(eight.mesh(**sizes)):
    assert_close(outcome(model(pipeline, remat), variables), want)


def test_rows_that_micro_batches_leave_over_go_layer_by_layer():
  """A text that is written is one row."""
  variables, token_BT = alone()[0], inputs()[0][:1]
  moe = {"groups": None}
  want = jax.jit(model({}, **moe).apply)(variables, token_BT)
  with jax.set_mesh(eight.mesh(stage=2)):
    assert_close(jax.jit(model({}, **moe).apply)(variables, token_BT), want)
