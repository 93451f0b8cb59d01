"""Every block inside a decoder: gradients, causality, packed documents; found by its file name."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core import config, plugin
from moejax.core.plan import RouterInputs
from moejax.models import decoder
from moejax.perf import flops

BLOCKS = plugin.names("blocks")
B, T, VOCAB, WIDTH = 2, 8, 11, 8
SECTIONS = {
  "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
  "moe": {"num_experts": 4, "hidden": 8, "dispatch": {"name": "dense"}},
  "mlp": {"hidden": 8},
  "ssm": {"hidden": 8, "states": 2, "rank": 2, "taps": 3},
  "workspace": {"slots": 2, "width": 4},
}


@functools.cache
def model_cfg(name):
  """Two layers of the block, with every section it can have."""
  fields = plugin.load("blocks", name).Config.__dataclass_fields__
  layer = {word: {} for word in decoder.COMMON if word in fields}
  section = {"vocab": VOCAB, "width": WIDTH, "tied": False, **SECTIONS}
  return config.section("model", {**section, "layers": [{"name": name, **layer}] * 2})


@functools.cache
def variables(name):
  return drawn.variables(decoder.Model(model_cfg(name)), tokens())


def tokens():
  return jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (B, T)))


def packed(first: int):
  """Rows of two documents, the first of them of `first` tokens."""
  at_BT = jnp.tile(jnp.arange(T), (B, 1))
  position_BT = jnp.where(at_BT < first, at_BT, at_BT - first)
  segment_BT = 1 + (at_BT >= first)
  valid_N = jnp.ones(B * T, bool)
  return RouterInputs(segment_N=segment_BT.ravel(), position_N=position_BT.ravel(), valid_N=valid_N)


@functools.partial(jax.jit, static_argnums=0)
def outcome(name, token_BT, ctx):
  """(logits, gradients)."""
  rest = variables(name)

  def loss(params):
    model = decoder.Model(model_cfg(name))
    logit_BTV, _ = model.apply({**rest, "params": params}, token_BT, ctx)
    return jnp.sum(jnp.sin(logit_BTV)), logit_BTV

  grads, logit_BTV = jax.grad(loss, has_aux=True)(rest["params"])
  return logit_BTV, grads


def differs(a, b):
  """Largest difference of two [B, T, V] at every place of a row."""
  return np.abs(np.asarray(a) - np.asarray(b)).max((0, 2))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_leaf_learns(name):
  logit_BTV, grads = outcome(name, tokens(), packed(T))
  assert logit_BTV.shape == (B, T, VOCAB) and np.all(np.isfinite(logit_BTV))
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    where = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)) and float(jnp.abs(leaf).max()) > 0, f"no gradient to {where}"


@pytest.mark.parametrize("name", BLOCKS)
def test_a_later_token_changes_nothing_before_it(name):
  want_BTV, _ = outcome(name, tokens(), packed(T))
  for t in (T - 1, T // 2, 1):
    changed_BT = tokens().at[:, t].set((tokens()[:, t] + 1) % VOCAB)
    off_T = differs(outcome(name, changed_BT, packed(T))[0], want_BTV)
    np.testing.assert_allclose(off_T[:t], 0, atol=1e-6)
    assert off_T[t] > 1e-3


@pytest.mark.parametrize("name", BLOCKS)
def test_a_document_sees_nothing_of_the_one_before_it_in_the_row(name):
  """Nor does it matter how much of one there is."""
  want_BTV, _ = outcome(name, tokens(), packed(3))
  changed_BT = tokens().at[:, :3].set((tokens()[:, :3] + 1) % VOCAB)
  off_T = differs(outcome(name, changed_BT, packed(3))[0], want_BTV)
  assert off_T[:3].min() > 1e-3
  np.testing.assert_allclose(off_T[3:], 0, atol=1e-6)
  moved_BTV, _ = outcome(name, jnp.roll(tokens(), 2, axis=1), packed(5))
  np.testing.assert_allclose(moved_BTV[:, 5:], want_BTV[:, 3:6], atol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_its_flops_are_those_of_its_parts(name):
  """About twice the active parameters at least, and more for a longer row through attention."""
  cfg = model_cfg(name)
  active = flops.params(cfg)["active"] - VOCAB * WIDTH  # the embedding is looked up
  assert flops.forward(cfg, T) > 1.8 * active
  assert flops.forward(cfg, 2 * T) > flops.forward(cfg, T)
