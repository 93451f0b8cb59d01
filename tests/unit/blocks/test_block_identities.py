"""Limits in which a block is another one."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core import config, plugin
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.perf import flops

B, T, D = 2, 6, 8
X_BTD = drawn.normal(0, B, T, D)
CTX = RouterInputs(seq_len=T)
ATTENTION = {"heads": 2, "kv_heads": 1, "head_width": 4}
MOE = {"num_experts": 4, "hidden": 8, "dispatch": {"name": "dense"}}


def block(name, **sections):
  cfg = config.section("layers", {"name": name, "attention": ATTENTION, **sections})
  return plugin.module(cfg).Block(cfg)


def output(block, variables):
  return jax.jit(lambda variables: block.apply(variables, X_BTD, CTX)[0])(variables)


def zeroed(tree, where):
  """The tree with the weights that write to the stream set to zero below modules of these names."""
  off = lambda path: path[-1].key.startswith("wo_") and where in [key.key for key in path]
  zero = lambda path, leaf: jnp.zeros_like(leaf) if off(path) else leaf
  return jax.tree_util.tree_map_with_path(zero, tree)


def serial_dense(params, i):
  """The serial block of the i-th attention and dense FFN of a shortcut block, on x."""
  names = {"attention": f"attention_{i}", "attention_norm": f"attention_norm_{i}",
           "ffn": f"mlp_{i}", "ffn_norm": f"mlp_norm_{i}"}  # fmt: skip
  return {"params": {name: params[source] for name, source in names.items()}}


def test_shortcut_without_its_experts_is_two_dense_blocks():
  unit = block("shortcut", mlp={"hidden": 8}, moe=MOE)
  variables = drawn.variables(unit, X_BTD, CTX)
  dense = block("serial", ffn={"name": "mlp", "hidden": 8})

  def both(params):
    x_BTD = dense.apply(serial_dense(params, 0), X_BTD, CTX)[0]
    return dense.apply(serial_dense(params, 1), x_BTD, CTX)[0]

  bare = zeroed(variables, "moe")
  want_BTD = jax.jit(both)(variables["params"])
  np.testing.assert_array_equal(output(unit, bare), want_BTD)
  assert np.abs(output(unit, variables) - want_BTD).max() > 1e-2


def test_shortcut_with_an_empty_second_half_is_a_block_with_a_shared_expert():
  """The experts then read and write where a serial block with one wide shared expert does."""
  unit = block("shortcut", mlp={"hidden": 8}, moe=MOE)
  variables = drawn.variables(unit, X_BTD, CTX)
  variables = zeroed(zeroed(variables, "attention_1"), "mlp_1")
  params = variables["params"]
  routed = {**params["moe"], "shared": {"mlp": params["mlp_0"]}}
  want = {**serial_dense(params, 0)["params"], "ffn": routed}
  serial = block("serial", ffn={"name": "moe", **MOE, "shared": {"hidden": 8, "gate": "one"}})
  placement = {"ffn": variables["placement"]["moe"]}
  want_BTD = output(serial, {"params": want, "placement": placement})
  np.testing.assert_allclose(output(unit, variables), want_BTD, atol=1e-5)


def test_shortcut_costs_what_the_same_parts_cost_in_turn():
  section = {"vocab": 11, "width": D, "attention": ATTENTION, "mlp": {"hidden": 8}, "moe": MOE}
  shortcut = config.section("model", {**section, "layers": {"depth": 2, "block": "shortcut"}})
  shared = {"shared": {"hidden": 8, "gate": "one"}}
  layers = [{"ffn": "moe", "moe": shared}, {"ffn": "mlp"}] * 2
  serial = config.section("model", {**section, "layers": layers})
  assert flops.forward(shortcut, T) == flops.forward(serial, T)
  assert flops.params(shortcut) == flops.params(serial)


@pytest.mark.parametrize("norms", [1, 2])
def test_parallel_is_serial_where_one_branch_adds_nothing(norms):
  unit = block("parallel", ffn={"name": "mlp", "hidden": 8}, norms=norms)
  serial = block("serial", ffn={"name": "mlp", "hidden": 8})
  variables = drawn.variables(unit, X_BTD, CTX)
  params = dict(variables["params"])
  params.setdefault("ffn_norm", params["attention_norm"])
  both = {where: output(unit, zeroed(variables, where)) for where in ("attention", "ffn")}
  for where, got_BTD in both.items():
    want_BTD = output(serial, zeroed({"params": params}, where))
    np.testing.assert_allclose(got_BTD, want_BTD, atol=1e-6)
  # what each branch adds does not depend on the other
  np.testing.assert_allclose(
    output(unit, variables) - X_BTD, both["attention"] + both["ffn"] - 2 * X_BTD, atol=1e-5
  )


def test_parallel_refuses_other_numbers_of_norms():
  with pytest.raises(Wrong, match="parallel: norms is 3"):
    block("parallel", norms=3)


WRONG = [
  ([{"name": "shortcut", "ffn": "moe"}], "model.layers.0.: .*shortcut has no field 'ffn'"),
  ([{}, {"name": "shortcut", "ssm": {}}], "model.layers.1.: the block 'shortcut' has no section"
   " 'ssm'; it has attention, mlp, moe"),
  ([{"name": "shortct"}], "blocks has no 'shortct'. Did you mean 'shortcut'"),
  ({"depth": 2, "block": "shortcut", "every": 2}, "'shortcut' has its own FFNs"),
  ({"depth": 2, "block": "paralel"}, "Did you mean 'parallel'"),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "match"), WRONG, ids=lambda value: str(value)[:24])
def test_a_layer_with_sections_its_block_does_not_have_is_refused(layers, match):
  with pytest.raises(Wrong, match=match):
    config.section("model", {"vocab": 11, "layers": layers})


def test_layers_of_several_blocks_take_the_common_sections_they_read():
  section = {"vocab": 11, "width": D, "attention": ATTENTION, "moe": MOE, "mlp": {"hidden": 5}}
  layers = [{"name": "shortcut", "mlp": {"hidden": 7}}, {"ffn": "mlp"}, {"name": "parallel"}]
  cfg = config.section("model", {**section, "layers": layers})
  one, two, three = cfg.layers
  assert (one.mlp.hidden, one.moe.hidden, one.attention.heads) == (7, 8, 2)
  assert (two.ffn.hidden, three.ffn.num_experts) == (5, 4)
  assert config.section("model", config.dump(cfg)) == cfg


def residual(gate):
  """A residual MoE layer: top-1 beside a dense FFN."""
  router = {"name": "topk", "k": 1, "renormalise": False}
  return moe_layer({"router": router, "shared": {"hidden": 8, "gate": gate}})


def moe_layer(section):
  cfg = config.section("ffn", {"name": "moe", **MOE, **section})
  return plugin.module(cfg).Layer(cfg)


def test_residual_experts_are_a_shared_expert_and_half_of_it_where_coefficients_do_not_choose():
  """PR-MoE: the sum of its paper, and the two weights of its code at 1/2."""
  x_ND = X_BTD.reshape(-1, D)
  both, weighted = residual("one"), residual("coefficients")
  variables = drawn.variables(weighted, x_ND, CTX)
  shared = variables["params"]["shared"]
  level = {**variables["params"], "shared": {**shared, "gate_DG": jnp.zeros((D, 2))}}
  plain = {**variables["params"], "shared": {"mlp": shared["mlp"]}}
  run = lambda layer, params: layer.apply({**variables, "params": params}, x_ND, CTX)[0]
  got = jax.jit(lambda: (run(both, plain), run(weighted, level), parts(variables)))()
  np.testing.assert_allclose(got[1], got[0] / 2, atol=1e-6)
  np.testing.assert_allclose(got[0], sum(got[2]), atol=1e-6)


def parts(variables):
  """(top-1 alone, the dense FFN alone) of a residual layer."""
  params, x_ND = dict(variables["params"]), X_BTD.reshape(-1, D)
  dense = params.pop("shared")["mlp"]
  alone = moe_layer({"router": {"name": "topk", "k": 1, "renormalise": False}})
  mlp_cfg = config.section("mlp", {"hidden": 8})
  mlp = plugin.module(mlp_cfg).Layer(mlp_cfg)
  routed_ND = alone.apply({**variables, "params": params}, x_ND, CTX)[0]
  return routed_ND, mlp.apply({"params": dense}, x_ND, CTX)[0]


def test_equal_numbers_of_experts_by_layer_are_one_run_and_a_pyramid_counts_its_parameters():
  section = {"vocab": 11, "width": D, "attention": ATTENTION, "moe": MOE}
  by_layer = lambda experts: config.section(
    "model", {**section, "layers": {"depth": 4, "moe": {"num_experts": experts}}}
  )
  uniform = config.section("model", {**section, "layers": {"depth": 4}})
  assert by_layer([4, 4, 4, 4]) == uniform
  expert = 3 * D * 8 + D  # three matrices, and a column of the router
  pyramid = flops.params(by_layer([2, 2, 4, 8]))["total"]
  assert pyramid == flops.params(uniform)["total"] and pyramid > 16 * expert
  assert flops.params(by_layer([2, 2, 4, 9]))["total"] == pyramid + expert
