"""Memory layers inside a decoder: tables of all layers, buffers that follow, counts, bad sizes."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, plugin, tree
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import pkm, table, ultramem
from moejax.perf import flops, jaxpr
from moejax.train import buffers, metrics

B, T, D = 2, 6, 8
SIZES = {"keys": 8, "k": 4, "key_width": 4}
MEMORIES = {
  "pkm": SIZES,
  "plus": {"name": "pkm", **SIZES, "gated": True, "table": {"width": 6, "rows": 96, "readers": 2}},
  "peer": SIZES,
  "ultramem": {**SIZES, "table": {"width": 6, "pre": 5, "rows": 96, "readers": 2}},
}


@functools.cache
def model(name):
  """Two layers with a memory beside a dense FFN."""
  layer = {"name": "memory", "ffn": "mlp", "memory": {"name": name, **MEMORIES[name]}}
  section = {
    "vocab": 11, "width": D, "mlp": {"hidden": 8}, "layers": [layer] * 2,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
  }  # fmt: skip
  cfg = config.section("model", section)
  return plugin.module(cfg).Model(cfg)


@functools.cache
def variables(name):
  """A drawn permutation, and u and v that point to positive numbers."""
  found = drawn.variables(model(name), jnp.zeros((B, T), int))
  order_P = jnp.asarray(np.random.default_rng(0).permutation(96))
  ones = jax.tree.map(jnp.ones_like, found["router_state"])
  return {**found, "router_state": ones, "placement": {"table": {"order_P": order_P}}}


@pytest.mark.parametrize("name", MEMORIES)
def test_the_config_counts_what_the_traced_model_computes(name):
  token_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
  made = jax.eval_shape(model(name).init, jax.random.key(0), token_BT)
  walked = jaxpr.flops(lambda *args: model(name).apply(*args)[0], made, token_BT)
  unseen = 2 * B * T * 4.0 * 2 * 4 * (T - 1) / 2  # scores above the diagonal
  assert walked == jaxpr.Count(B * T * flops.forward(model(name).cfg, T) + unseen)


def test_every_leaf_learns_and_usage_is_logged():
  made, token_BT = variables("ultramem"), drawn.normal(0, B, T).astype(int) % 11

  @jax.jit
  def outcome(params):
    def loss(params):
      logit_BTV, sums = model("ultramem").apply({**made, "params": params}, token_BT)
      return jnp.sum(jnp.sin(logit_BTV)), sums

    return jax.grad(loss, has_aux=True)(params)

  grads, sums = outcome(made["params"])
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
  logged = metrics.of_step(sums, {}, model("ultramem").cfg)["memories"]
  assert list(logged) == ["layer_000", "layer_001"]
  assert 0 < logged["layer_001"]["hit"] <= B * T * 4 / 64


def test_a_layer_touches_its_window_of_the_permuted_table_and_no_other_row():
  cfg = pkm.Config(**SIZES, gated=True, table=table.Config(width=6, rows=96, readers=3))
  order_P = jnp.asarray(np.random.default_rng(0).permutation(96))
  x_ND, ctx = drawn.normal(1, 40, D), RouterInputs(shared={"table": {"order_P": order_P}})
  layer = pkm.Layer(cfg)

  def output(params, value_PF, m):
    shared = {"table": {"order_P": order_P, "value_PF": value_PF}}
    here = ctx.replace(shared=shared, carry={"memory_layer": m})
    return layer.apply({"params": params}, x_ND, here)

  value_PF, m = drawn.normal(2, 96, 6), jnp.int32(0)
  read = lambda m: ctx.replace(
    shared={"table": {"order_P": order_P, "value_PF": value_PF}}, carry={"memory_layer": m}
  )
  params = drawn.variables(layer, x_ND, read(m))["params"]

  @jax.jit
  def touched(m):
    loss = lambda value_PF: jnp.sum(output(params, value_PF, m)[0] ** 2)
    return jnp.abs(jax.grad(loss)(value_PF)).sum(1) > 0, output(params, value_PF, m)[2]

  for m, window in ((0, range(64)), (1, range(32, 96)), (2, [*range(64, 96), *range(32)])):
    touched_P, carry = touched(jnp.int32(m))
    assert (
      int(touched_P.sum()) > 20 and not touched_P[order_P[np.setdiff1d(range(96), window)]].any()
    )
    assert int(carry["memory_layer"]) == m + 1


def test_u_and_v_follow_the_core_after_a_step_and_keep_their_sign():
  made, cfg = variables("ultramem"), model("ultramem").cfg
  moved = jax.tree.map(lambda leaf: -leaf, made["params"])
  _, state = buffers.refresh(moved, {**made}, {}, {}, cfg)
  old, new = (tree.unstack(s["router_state"], cfg)["layer_001"] for s in (made, state))
  router = tree.unstack(moved, cfg)["layer_001"]["memory"]["router"]
  u_R, v_R = (new["memory"]["router"][name] for name in ("u_R", "v_R"))
  left_RR, size_R, right_RR = np.linalg.svd(np.sum(router["core_CRR"], axis=0))
  assert_close(np.outer(u_R, v_R), np.outer(left_RR[:, 0], right_RR[0]))
  assert u_R @ old["memory"]["router"]["u_R"] + v_R @ old["memory"]["router"]["v_R"] >= 0
  assert state["placement"] is made["placement"]


def test_weights_read_by_a_batch():
  """One token reads k rows of each head; many tokens nearly all; what is dense is read once."""
  dense = flops.params(model("peer").cfg)["total"] - 2 * 2 * 64 * D  # layers, tables, slots
  rows = lambda tokens: 64 * (1 - (1 - 8 / 64) ** tokens)
  for tokens in (1, 5):
    want = dense + 2 * 2 * rows(tokens) * D
    np.testing.assert_allclose(flops.touched(model("peer").cfg, tokens), want)
  shared = flops.params(model("ultramem").cfg)["total"] - 96 * 11
  np.testing.assert_allclose(flops.params(model("ultramem").cfg)["active"], shared + 8 * 11)


@pytest.mark.parametrize(
  ("section", "sentence"),
  [
    ({"keys": 4, "k": 5}, "pkm: k is 5, and a half has 4 keys"),
    ({"key_width": 7}, "key_width 7 cannot be cut into two halves"),
    ({"heads": 0}, "heads is 0; it must be at least 1"),
    ({"name": "peer", "gate": "softmx"}, "Did you mean 'softmax'"),
    ({"table": {"rows": 10, "readers": 3}}, "10 rows cannot be cut .* of 3 readers"),
    ({"table": {"readers": 3}}, "3 readers have no rows to share"),
    ({"table": {"rows": 60}, "keys": 8}, r"64 slots \(keys\^2\) do not fit .* of 60 rows"),
    ({"table": {"pre": 4}}, "table.pre is 4, and this layer compares its token with no row"),
    ({"table": {"width": 0}}, "width is 0"),
    ({"name": "ultramem", "cores": 3}, "3 cores cannot share values of width 64"),
    ({"name": "ultramem", "rank": 0}, "rank is 0"),
    ({"name": "memory"}, "layers has no 'memory'"),
  ],
)
def test_impossible_sizes_are_one_sentence(section, sentence):
  with pytest.raises(Wrong, match=sentence):
    config.section("memory", section)


def test_values_of_another_width_need_a_projection():
  cfg = pkm.Config(**SIZES, table=table.Config(width=6))
  with pytest.raises(Wrong, match="width 6 cannot be added to a stream of width 8"):
    jax.eval_shape(pkm.Layer(cfg).init, jax.random.key(0), drawn.normal(0, 4, D), RouterInputs())


def test_one_model_has_one_shared_table():
  two = [table.Config(width=w, rows=96) for w in (4, 6)]
  layers = [{"name": "memory", "ffn": "mlp",
             "memory": config.dump(ultramem.Config(t, **SIZES))} for t in two]  # fmt: skip
  section = {"vocab": 11, "width": D, "attention": {"heads": 2, "kv_heads": 1}, "layers": layers}
  cfg = config.section("model", section)
  with pytest.raises(Wrong, match="table: the layers of a model share one"):
    made = plugin.module(cfg).Model(cfg)
    jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((B, T), int))
