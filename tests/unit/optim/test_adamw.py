"""AdamW against optax's, groups by letter and path, and frozen parts that have no moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import assert_close

from moejax.core import config
from moejax.core.plugin import Wrong
from moejax.optim import adamw, ema, groups
from moejax.schedules import linear

LR = lambda step: 0.1 / (step + 1)


def make_params(key=0):
  """An embedding, a run of two layers, and a run whose pattern has two positions."""
  shapes = {
    "embed": {"table_VD": (5, 4)},
    "layers_000_001": {"0": {"norm": {"scale_D": (2, 4)}, "ffn": {"wo_FD": (2, 3, 4)}}},
    "layers_002_005": {
      "0": {"ffn": {"wo_FD": (2, 3, 4)}},
      "1": {"ffn": {"wo_EFD": (2, 2, 3, 4), "router": {"gate_DE": (2, 4, 2)}}},
    },
  }
  is_shape = lambda value: isinstance(value, tuple)
  leaves, structure = jax.tree.flatten(shapes, is_leaf=is_shape)
  keys = jax.random.split(jax.random.key(key), len(leaves))
  made = [jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, made)


def names_of(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name for path, x in leaves for name in groups.names([k.key for k in path], x.shape)}


def train(tx, steps=3):
  """(params, state) after a few steps on gradients of known size."""
  params = make_params()

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for i in range(steps):
    params, state = step(params, state, make_params(key=1 + i))
  return params, state


def test_adamw_is_that_of_optax_with_clipping_and_a_decay_mask():
  cfg = adamw.Config(b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.3, clip_norm=2.0)
  decays = lambda params: (
    jax.tree.map(lambda x: True, params)
    | {
      "embed": {"table_VD": False},
      "layers_000_001": {"0": {"norm": {"scale_D": False}, "ffn": {"wo_FD": True}}},
    }
  )
  clip = optax.clip_by_global_norm(2.0)
  want = optax.chain(clip, optax.adamw(LR, 0.8, 0.99, 1e-6, weight_decay=0.3, mask=decays))
  got, state = train(adamw.make(cfg, LR, make_params()))
  assert_close(got, train(want)[0])
  assert int(state.count) == 3


def test_rules_by_letter_and_by_path_the_first_that_matches():
  rules = (groups.Config("gate_", lr=0.5, weight_decay=0.0), groups.Config("E", lr=2.0))
  found = groups.settings(make_params(), rules, 0.1)
  second = found["layers_002_005"]["1"]["ffn"]
  assert second["router"]["gate_DE"] == groups.Setting(0.5, 0.0, True)
  assert second["wo_EFD"] == groups.Setting(2.0, 0.1, True)
  assert found["layers_000_001"]["0"]["norm"]["scale_D"] == groups.Setting(1.0, 0.0, True)
  assert found["embed"]["table_VD"].weight_decay == 0.0


def test_decay_spares_what_sets_a_size():
  spared = (
    "embed/table_VD",
    "norm/scale_D",
    "table/value_PF",
    "attention/bq_HA",
    "attention/scale_q_HA",
    "bias_E",
  )
  decays = ("head/table_VD", "attention/wq_DHA", "ffn/router/gate_DE", "ffn/wo_EFD")
  for name in spared + decays:
    *where, leaf = name.split("/")
    tree = {leaf: jnp.zeros((2,) * len(leaf.rpartition("_")[2]))}
    for key in reversed(where):
      tree = {key: tree}
    (found,) = jax.tree.leaves(groups.settings(tree, (), 0.1))
    assert found.weight_decay == (0.1 if name in decays else 0.0), name


def test_a_rule_reaches_one_layer_of_a_stacked_leaf():
  rules = (groups.Config("layer_004", lr=0.0),)
  tx = adamw.make(adamw.Config(rules=rules, clip_norm=None), LR, make_params())
  got, start = (
    tree["layers_002_005"]["0"]["ffn"]["wo_FD"] for tree in (train(tx)[0], make_params())
  )
  assert (got[1] == start[1]).all() and (got[0] != start[0]).any()


@pytest.mark.parametrize("trainable", ["E", ("wo_EFD", "router"), "layer_00[35]"])
def test_what_is_not_trainable_has_no_moments_and_stays(trainable):
  got, state = train(adamw.make(adamw.Config(), LR, make_params(), trainable=trainable))
  expert = {f"layer_00{i}/ffn/{leaf}" for i in (3, 5) for leaf in ("wo_EFD", "router/gate_DE")}
  assert names_of(state.mu) == names_of(state.nu) == expert
  start = make_params()
  for run, position in (("layers_000_001", "0"), ("layers_002_005", "0")):
    assert jax.tree.all(
      jax.tree.map(lambda a, b: (a == b).all(), got[run][position], start[run][position])
    )
  assert jax.tree.all(
    jax.tree.map(
      lambda a, b: (a != b).any(), got["layers_002_005"]["1"], start["layers_002_005"]["1"]
    )
  )


def test_frozen_layers_of_a_leaf_take_no_part_in_the_clipping():
  part = adamw.make(
    adamw.Config(clip_norm=0.1), LR, make_params(), trainable="layer_003/ffn/wo_EFD"
  )
  got, state = train(part, steps=1)
  (mu,) = jax.tree.leaves(state.mu)
  now, start = (tree["layers_002_005"]["1"]["ffn"]["wo_EFD"] for tree in (got, make_params()))
  assert (now[1] == start[1]).all() and (now[0] != start[0]).all()
  assert not mu[1].any()
  np.testing.assert_allclose(optax.tree.norm(state.mu), 0.1 * 0.1, rtol=1e-5)  # (1 - b1) * clip


def test_moments_have_their_own_dtype_and_the_second_stays_wide():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())
  tx = adamw.make(adamw.Config(), LR, params, moments="bfloat16")
  state = jax.eval_shape(tx.init, params)
  assert {x.dtype for x in jax.tree.leaves(state.mu)} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(state.nu)} == {jnp.dtype("float32")}
  after = jax.eval_shape(tx.update, params, state, params)[1]
  assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)


def test_a_rule_has_a_schedule_of_its_own_also_for_one_layer_of_a_stack():
  fall = linear.Config(peak=4.0, end=1.0)
  rules = (groups.Config("table", lr=0.5, schedule=fall), groups.Config("layer_004", schedule=fall))
  found = groups.settings(make_params(), rules, 0.0)
  step, steps = jnp.int32(1), 3
  table, stacked = found["embed"]["table_VD"], found["layers_002_005"]["0"]["ffn"]["wo_FD"]
  assert float(groups.rate(table, 2, step, steps)) == 0.5 * 3.0
  assert groups.rate(stacked, 3, step, steps).tolist() == [[[1.0]], [[3.0]]]

  first = lambda rules: train(
    adamw.make(adamw.Config(rules=rules, weight_decay=0.0), LR, make_params(), steps=steps), steps=1
  )[0]
  moved = lambda rules: first(rules)["embed"]["table_VD"] - make_params()["embed"]["table_VD"]
  assert_close(moved(rules), 0.5 * 4.0 * moved(()))
  with pytest.raises(Wrong, match="a schedule needs the number of all steps"):
    groups.rate(table, 2, step, None)


def test_a_section_with_rules_resolves_and_dumps_back():
  section = {
    "b2": 0.99,
    "rules": [
      {"match": "E", "lr": 0.5},
      {"match": "router", "frozen": True},
      {"match": "P", "schedule": {"name": "linear", "peak": 4.0}},
    ],
  }
  cfg = config.section("optim", section)
  assert cfg.rules == (groups.Config("E", lr=0.5), groups.Config("router", frozen=True),
                       groups.Config("P", schedule=linear.Config(peak=4.0)))  # fmt: skip
  assert config.section("optim", config.dump(cfg)) == cfg


@pytest.mark.parametrize(
  ("section", "sentence"),
  [
    ({"b2": 1.0}, r"b1 is 0.9 and b2 is 1.0; both lie in 0..1"),
    ({"eps": 0.0}, r"eps is 0.0 and weight_decay is 0.1; eps is above 0"),
    ({"clip_norm": 0.0}, r"clip_norm is 0.0; use a positive number, or None"),
    ({"rules": [{"match": "("}]}, r"'\(' is no regular expression"),
    ({"rules": [{"match": "E", "lr": -1.0}]}, r"'E' has lr -1.0"),
  ],
)
def test_a_wrong_section_is_one_sentence(section, sentence):
  with pytest.raises(Wrong, match=sentence):
    config.section("optim", section)


def test_a_rule_that_matches_nothing_is_refused():
  for extra in ({"cfg": adamw.Config(rules=(groups.Config("rooter"),))}, {"trainable": "rooter"}):
    with pytest.raises(
      Wrong, match=r"optim: no parameter matches 'rooter'\. Known: embed/table_VD"
    ):
      adamw.make(**{"cfg": adamw.Config(), **extra}, lr=LR, params=make_params())


def test_the_average_starts_as_a_copy_and_nears_its_decay():
  params = make_params()
  average = ema.init(params)
  assert_close(average, params)
  step = jax.jit(lambda average, params, step: ema.update(average, params, 0.99, step))
  late = step(average, make_params(1), 10_000)
  assert_close(late, jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, params, make_params(1)))
