"""Extraction: experts are what masks would leave of the dense FFN, and all units are all of it."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config, tree
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.grow import extract
from moejax.layers import mlp
from moejax.models import decoder

D, F, Y = 4, 10, 3
TOKEN_BT = jnp.arange(12).reshape(2, 6) % 11
LABEL_N = jnp.arange(12) % Y
CTX = RouterInputs(label_N=LABEL_N, labels=Y, valid_N=jnp.arange(12) != 7)
FFN = {
  "wg_DF": drawn.normal(0, D, F),
  "wu_DF": drawn.normal(1, D, F),
  "wo_FD": drawn.normal(2, F, D),
}
MASK_YF = extract.masks(drawn.normal(3, Y, F) + jnp.array([[9.0, 9.0] + [0.0] * (F - 2)]), 0.5)


def ffn(x_ND, wg_DF, wu_DF, wo_FD, mask_F=1.0):
  gate_NF = x_ND @ wg_DF
  return (gate_NF / (1 + np.exp(-gate_NF)) * (x_ND @ wu_DF) * mask_F) @ wo_FD


@pytest.mark.parametrize("fused", [False, True])
def test_an_expert_is_the_dense_ffn_with_the_other_units_masked(fused):
  assert MASK_YF.sum(1).tolist() == [5, 5, 5] and MASK_YF.all(0).sum() >= 2
  x_ND = np.asarray(drawn.normal(4, 7, D))
  cut = jax.tree.map(np.asarray, extract.sliced(FFN, MASK_YF, fused))
  common = cut.get("shared", {}).get("mlp")
  assert (common is not None) == fused
  for e in range(Y):
    got_ND = ffn(x_ND, cut["wg_EDF"][e], cut["wu_EDF"][e], cut["wo_EFD"][e])
    got_ND = got_ND + (ffn(x_ND, **common) if fused else 0)
    want_ND = ffn(x_ND, **jax.tree.map(np.asarray, FFN), mask_F=MASK_YF[e])
    np.testing.assert_allclose(got_ND, want_ND, atol=1e-5)


def section(layers):
  return config.section("model", {
    "vocab": 11, "width": 8, "mlp": {"hidden": F}, "layers": layers,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
  })  # fmt: skip


def make_cfg(experts=Y, **fields):
  router = {"name": "topk", "k": 1, "softmax": "chosen"}  # a gate of 1
  moe = {"num_experts": experts, "router": router}
  return config.section("transform", {"name": "extract", "moe": moe, **fields})


@functools.cache
def dense():
  """(model, variables by collection, variables by layer, its activations)."""
  model = decoder.Model(section([{"ffn": "mlp"}] * 2))
  variables = drawn.variables(model, TOKEN_BT)
  size = extract.statistics(model, variables, [(TOKEN_BT, CTX)])
  by_layer = {name: tree.unstack(part, model.cfg) for name, part in variables.items()}
  return model, variables, by_layer, size


def applied(cfg):
  model, _, by_layer, size = dense()
  return extract.apply(by_layer, model.cfg, {"key": jax.random.key(0), "activation": size}, cfg)


def test_all_units_are_the_dense_model():
  model, variables, *_ = dense()
  by_layer, new_cfg, _ = applied(make_cfg(remain_rate=1.0))
  stacked = {name: tree.stack(part, new_cfg) for name, part in by_layer.items()}
  logits = lambda model, variables: jax.jit(lambda v: model.apply(v, TOKEN_BT)[0])(variables)
  assert_close(logits(decoder.Model(new_cfg), stacked), logits(model, variables))


@pytest.mark.slow
def test_shapes_moments_and_what_is_shared():
  """One layer of two: the new variables are those of the new model, and moments are slices, too."""
  _, _, old, size = dense()
  by_layer, new_cfg, follow = applied(make_cfg(only=[1], remain_rate=0.8, fused=True))
  stacked = {name: tree.stack(part, new_cfg) for name, part in by_layer.items()}
  want = jax.eval_shape(decoder.Model(new_cfg).init, jax.random.key(0), TOKEN_BT)
  shape = lambda leaf: (leaf.shape, leaf.dtype)
  assert jax.tree.map(shape, stacked) == jax.tree.map(shape, dict(want))
  mask_YF = extract.masks(size["layer_001"], 0.8)
  ffn_001 = new_cfg.layers[1].ffn
  assert ffn_001.shared.hidden == mask_YF.all(0).sum() and ffn_001.shared.hidden > 0
  assert ffn_001.hidden + ffn_001.shared.hidden == 8
  moved = follow(jax.tree.map(lambda leaf: 2 * leaf, old["params"]))
  twice = jax.tree.map(lambda leaf: 2 * leaf, by_layer["params"])
  router = moved["layer_001"]["ffn"].pop("router")
  twice["layer_001"]["ffn"].pop("router")
  assert_close(moved, twice)
  assert not any(leaf.any() for leaf in jax.tree.leaves(router))
  assert_close(follow(old["params"], by_layer["params"]), by_layer["params"])


def test_activations_are_summed_by_label_without_padding():
  x_ND = drawn.normal(5, 12, D)
  tapped = CTX.replace(taps=(extract.TAP,))
  _, seen, _ = mlp.Layer(mlp.Config(F)).apply({"params": FFN}, x_ND, tapped)
  want_YF = np.zeros((Y, F))
  for n, x_D in enumerate(np.asarray(x_ND)):
    if n != 7:
      gate_F = x_D @ np.asarray(FFN["wg_DF"])
      h_F = gate_F / (1 + np.exp(-gate_F)) * (x_D @ np.asarray(FFN["wu_DF"]))
      want_YF[LABEL_N[n]] += np.abs(h_F)
  assert_close(seen, {f"taps/{extract.TAP}": want_YF.astype(np.float32)})
  assert {name: leaf.shape for name, leaf in dense()[3].items()} == {
    "layer_000": (Y, F), "layer_001": (Y, F),
  }  # fmt: skip


def test_scores_are_the_loop():
  size_NF = np.abs(np.asarray(drawn.normal(6, 5, F)))
  own_EF = MASK_YF & ~MASK_YF.all(0)
  count, rows = own_EF[0].sum(), []
  for size_F in size_NF:
    order = sorted(range(F), key=lambda f, size_F=size_F: -size_F[f])
    tops = [set(order[: int(count * j // 5)]) for j in range(1, 6)]
    fit = [sum(own_EF[e][f] for top in tops for f in top) / (3 * count) for e in range(Y)]
    rows.append(10 * (np.array(fit) - np.mean(fit)))
  assert_close(extract.scores(jnp.asarray(size_NF), MASK_YF), np.array(rows, np.float32))


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    (dict(remain_rate=0.0), "remain_rate is 0.0"),
    (dict(only=[2]), r"layers \[2\] are asked for and the dense ones are \[0, 1\]"),
    (dict(experts=4), "there are 3 domains and transform.moe.num_experts is 4"),
    (dict(remain_rate=1.0, fused=True), "all experts have the same 10 units"),
  ],
)
def test_what_cannot_be_extracted_is_refused(fields, sentence):
  with pytest.raises(Wrong, match=sentence):
    applied(make_cfg(**fields))


def test_a_shared_expert_of_its_own_and_a_domain_without_text_are_refused():
  with pytest.raises(Wrong, match="leave transform.moe.shared out"):
    config.section("transform", {"name": "extract", "moe": {"shared": {"hidden": 4}}})
  model, _, by_layer, size = dense()
  empty = {name: leaf * np.array([[1.0], [0.0], [1.0]]) for name, leaf in size.items()}
  with pytest.raises(Wrong, match=r"layer_000 the domains \[1\] moved no unit"):
    stats = {"key": jax.random.key(0), "activation": empty}
    extract.apply(by_layer, model.cfg, stats, make_cfg())


def test_without_activations_it_says_where_to_get_them():
  model, _, by_layer, _ = dense()
  with pytest.raises(Wrong, match="call statistics"):
    extract.apply(by_layer, model.cfg, {"key": jax.random.key(0)}, make_cfg())
