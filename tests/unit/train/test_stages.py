"""Entering a stage: the whole state of training goes through a transform."""

import dataclasses

import jax
import jax.numpy as jnp
from close import assert_close

from moejax.core import config, tree
from moejax.models import decoder
from moejax.optim import adamw
from moejax.schedules import constant
from moejax.train import mesh, stages, step

SECTION = {
  "vocab": 11, "width": 8, "mlp": {"hidden": 6}, "layers": [{"ffn": "mlp"}] * 2,
  "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
}  # fmt: skip
MOE = {"num_experts": 4, "hidden": 6, "router": {"name": "topk", "k": 2}}
TRAIN = step.Config(constant.Config(), ema=0.9)
TOKEN_BT = jnp.zeros((2, 6), jnp.int32)


def start_of(model, trainable=None):
  """The function that makes the first state of a model."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKEN_BT)["params"]
  tx = adamw.make(adamw.Config(), lambda step: 1e-3, shapes, trainable=trainable)
  return lambda token_BT: step.init(model, tx, token_BT, TRAIN)


def test_moments_and_average_go_along_and_what_was_frozen_starts_from_zero():
  old = decoder.Model(config.section("model", SECTION))
  state = jax.jit(start_of(old, trainable="layer_000|ffn"))(TOKEN_BT)
  count = lambda tree_, plus: jax.tree.map(
    lambda x: jnp.arange(x.size).reshape(x.shape) + plus, tree_
  )
  moments = state.opt_state._replace(
    count=jnp.int32(7), mu=count(state.opt_state.mu, 0.5), nu=count(state.opt_state.nu, 1.5)
  )
  state = dataclasses.replace(state, opt_state=moments, ema=count(state.ema, 2.5))
  was = tree.unstack(state.params, old.cfg)["layer_001"]["ffn"]["wg_DF"]

  transform = config.section("transform", {"name": "spawn", "moe": MOE})
  stage = stages.Config(steps=1, transform=transform)
  variables, new_cfg, follow = stages.enter(stage, {"params": state.params}, old.cfg, seed=0)
  shapes = jax.eval_shape(start_of(decoder.Model(new_cfg)), TOKEN_BT)
  template = mesh.placed(shapes, mesh.make("data:1"))
  how = {"old_cfg": old.cfg, "new_cfg": new_cfg, "follow": follow}
  new = stages.moved(state, variables, template, **how)

  assert jax.tree.map(jnp.shape, new) == jax.tree.map(lambda x: x.shape, template)
  assert int(new.opt_state.count) == 7
  ffn = lambda trees, model_cfg: tree.unstack(trees, model_cfg)["layer_001"]["ffn"]
  assert_close(ffn(new.params, new_cfg)["wg_EDF"], jnp.stack([was] * 4))
  for after, before in (
    (new.opt_state.mu, moments.mu), (new.opt_state.nu, moments.nu), (new.ema, state.ema)
  ):  # fmt: skip
    want = ffn(before, old.cfg)["wo_FD"]
    assert_close(ffn(after, new_cfg)["wo_EFD"], jnp.stack([want] * 4))
  fresh = ffn(new.params, new_cfg)["router"]["gate_DE"]
  assert_close(ffn(new.ema, new_cfg)["router"]["gate_DE"], fresh)  # not from zero
  assert not ffn(new.opt_state.mu, new_cfg)["router"]["gate_DE"].any()
  assert "embed" not in moments.mu and not new.opt_state.mu["embed"]["table_VD"].any()
