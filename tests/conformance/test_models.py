"""Every model: shapes, gradients, and that folding and rematerialising layers change nothing."""

import dataclasses
import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, plugin, runs, tree

MODELS = plugin.names("models")
B, T, VOCAB, DEPTH = 2, 6, 11, 2
SECTIONS = {  # the section `model` of a tiny one, layers apart
  "decoder": {
    "vocab": VOCAB, "width": 8, "tied": False,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4, "qk_norm": "head", "bias": True},
    "moe": {
      "num_experts": 4, "hidden": 8, "shared": {"hidden": 4, "gate": "sigmoid"},
      "router": {"name": "recurrent"},  # hands something from layer to layer
    },
    "mlp": {"hidden": 8},
  },
}  # fmt: skip


@functools.cache
def configs(name):
  """(config whose layers fold into one run, the same layers told apart so that none do)."""
  assert name in SECTIONS, f"tests/conformance/test_models.py has no tiny section for {name!r}"
  folded = [{"ffn": "moe"}] * DEPTH
  # each number of groups is the default, one per sequence, written or not
  apart = [{"ffn": "moe", **({"moe": {"groups": B}} if i % 2 else {})} for i in range(DEPTH)]
  section = {"name": name, **SECTIONS[name]}
  resolve = lambda layers: config.section("model", {**section, "layers": layers}, "model")
  return resolve(folded), resolve(apart)


def model(cfg):
  return plugin.module(cfg).Model(cfg)


def tokens():
  return jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (B, T)))


@functools.cache
def variables(name):
  """Of the folded model."""
  return drawn.variables(model(configs(name)[0]), tokens())


@functools.partial(jax.jit, static_argnums=0)
def outcome(cfg, variables, token_BT):
  """(logits, gradients)."""

  def loss(params):
    logit_BTV, _ = model(cfg).apply({**variables, "params": params}, token_BT)
    return jnp.sum(jnp.sin(logit_BTV)), logit_BTV

  grads, logit_BTV = jax.grad(loss, has_aux=True)(variables["params"])
  return logit_BTV, grads


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_of_every_leaf(name):
  logit_BTV, grads = outcome(configs(name)[0], variables(name), tokens())
  assert logit_BTV.shape == (B, T, VOCAB) and logit_BTV.dtype == jnp.float32
  assert np.all(np.isfinite(logit_BTV))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    where = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)) and float(jnp.abs(leaf).max()) > 0, f"no gradient to {where}"


@pytest.mark.parametrize("name", MODELS)
def test_layers_in_one_run_are_layers_one_by_one(name):
  folded, apart = configs(name)
  assert [len(runs.fold(cfg.layers)) for cfg in (folded, apart)] == [1, DEPTH]
  again = lambda found: tree.stack(tree.unstack(found, folded), apart)
  spread = {collection: again(found) for collection, found in variables(name).items()}
  got_BTV, got = outcome(apart, spread, tokens())
  want_BTV, want = outcome(folded, variables(name), tokens())
  assert_close(got_BTV, want_BTV)
  assert_close(tree.unstack(got, apart), tree.unstack(want, folded))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_what_the_backward_pass_computes_again_is_the_same(name, remat):
  cfg = dataclasses.replace(configs(name)[0], remat=remat)
  assert_close(
    outcome(cfg, variables(name), tokens()), outcome(configs(name)[0], variables(name), tokens())
  )


@pytest.mark.parametrize("name", MODELS)
def test_a_later_token_changes_nothing_before_it(name):
  cfg, token_BT = configs(name)[0], tokens()
  want_BTV, _ = outcome(cfg, variables(name), token_BT)
  for t in (T - 1, T // 2):
    changed_BT = token_BT.at[:, t].set((token_BT[:, t] + 1) % VOCAB)
    got_BTV, _ = outcome(cfg, variables(name), changed_BT)
    np.testing.assert_allclose(got_BTV[:, :t], want_BTV[:, :t], atol=1e-6)
    assert float(jnp.abs(got_BTV[:, t:] - want_BTV[:, t:]).max()) > 1e-3
