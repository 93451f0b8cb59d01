"""Routers that hand something from layer to layer: their limits, and what travels."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config
from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.layers import moe
from moejax.models import decoder
from moejax.routers import depth_averaged, mlp, recurrent

N, D, E, R = 10, 6, 4, 5


def seen(cfg, carry=None, **fields):
  """(inputs, shared unit, variables) of a router, every parameter drawn."""
  module = {recurrent.Config: recurrent, depth_averaged.Config: depth_averaged}[type(cfg)]
  inputs = RouterInputs(
    x_ND=drawn.normal(0, N, D), carry=carry or module.init_carry(cfg, N), num_experts=E, **fields
  )
  if module is recurrent:
    unit = recurrent.Shared(cfg)
    inputs = inputs.replace(shared={"recurrent": drawn.variables(unit, inputs)["params"]})
  return inputs, drawn.variables(module.Router(cfg), inputs), module


def route(cfg, inputs, variables, module):
  """(logits, what is handed on)."""
  logit_NU, after = module.Router(cfg).apply(variables, inputs)  # not compiled: exact is exact
  return logit_NU, after.carry


def test_a_unit_without_memory_is_exactly_an_mlp_router():
  """W_h = 0, biases 0, update gate shut: B tanh(W A x) whatever the layer before says."""
  cfg = recurrent.Config(rank=R)
  inputs, variables, module = seen(cfg, {"hidden_NR": drawn.normal(3, N, R)})
  unit = inputs.shared["recurrent"]
  off = lambda name: "hidden" in name or name.endswith("_R") or "update" in name
  unit = {name: jnp.zeros_like(w) if off(name) else w for name, w in unit.items()}
  unit["in_update_R"] = jnp.full(R, -1e9)
  inputs = inputs.replace(shared={"recurrent": unit})
  logit_NE, carry = route(cfg, inputs, variables, module)
  p = variables["params"]
  hidden_NR = jnp.tanh(inputs.x_ND @ p["in_DR"] @ unit["in_new_RR"])
  np.testing.assert_array_equal(carry["hidden_NR"], hidden_NR)
  as_mlp = {"in_DR": p["in_DR"] @ unit["in_new_RR"], "gate_RE": p["gate_RE"]}
  want_NE, _ = mlp.Router(mlp.Config(rank=R)).apply({"params": as_mlp}, inputs)
  assert_close(logit_NE, want_NE)


def test_the_memory_is_that_of_the_token_and_the_first_layer_has_none():
  cfg = recurrent.Config(rank=R)
  inputs, variables, module = seen(cfg)
  u_NR = inputs.x_ND @ variables["params"]["in_DR"]
  _, carry = route(cfg, inputs, variables, module)
  want_NR = recurrent.cell(inputs.shared["recurrent"], u_NR, jnp.zeros((N, R)))
  assert_close(carry["hidden_NR"], want_NR)
  again = inputs.replace(carry=carry)
  got_NE, _ = route(cfg, again, variables, module)
  order = np.random.default_rng(0).permutation(N)
  moved = again.replace(x_ND=inputs.x_ND[order], carry={"hidden_NR": carry["hidden_NR"][order]})
  assert_close(route(cfg, moved, variables, module)[0], got_NE[order])


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stopped_gradient_changes_no_logits_and_teaches_no_layer_before(stopped):
  inputs, variables, module = seen(recurrent.Config(rank=R), {"hidden_NR": drawn.normal(3, N, R)})
  cfg = recurrent.Config(rank=R, stop_gradient=stopped)

  @functools.partial(jax.grad, has_aux=True)
  def logits(h_NR):
    logit_NE, _ = module.Router(cfg).apply(variables, inputs.replace(carry={"hidden_NR": h_NR}))
    return jnp.sin(logit_NE).sum(), logit_NE

  grad_NR, logit_NE = logits(inputs.carry["hidden_NR"])
  np.testing.assert_array_equal(logit_NE, module.Router(recurrent.Config(rank=R)).apply(
    variables, inputs)[0])  # fmt: skip
  assert bool((grad_NR == 0).all()) == stopped


def test_a_scale_of_zero_takes_the_layers_before_away():
  cfg = depth_averaged.Config(rank=R)
  inputs, variables, module = seen(cfg, {"averaged_NR": drawn.normal(3, N, R)})
  own = dict(variables["params"])
  own["scale_depth_R"] = jnp.zeros(R)
  got_NE, carry = route(cfg, inputs, {**variables, "params": own}, module)
  own.pop("scale_depth_R")
  alone = depth_averaged.Config(rank=R, average=False)
  want_NE, after = route(alone, inputs.replace(carry={}), {**variables, "params": own}, module)
  np.testing.assert_array_equal(got_NE, want_NE)
  assert after == {} and depth_averaged.init_carry(alone, N) == {}
  own_NR = inputs.x_ND @ own["in_DR"] + own["in_R"][None]
  assert_close(carry["averaged_NR"], own_NR)


def test_the_average_is_handed_on_before_its_norm_with_gradient():
  cfg = depth_averaged.Config(rank=R)
  inputs, variables, module = seen(cfg, {"averaged_NR": drawn.normal(3, N, R)})
  p = variables["params"]
  _, carry = route(cfg, inputs, variables, module)
  own_NR = inputs.x_ND @ p["in_DR"] + p["in_R"][None]
  want_NR = own_NR + p["scale_depth_R"][None] * inputs.carry["averaged_NR"]
  assert_close(carry["averaged_NR"], want_NR)
  handed = lambda h_NR: module.Router(cfg).apply(
    variables, inputs.replace(carry={"averaged_NR": h_NR})
  )[0].sum()  # fmt: skip
  assert float(jnp.abs(jax.grad(handed)(inputs.carry["averaged_NR"])).min()) > 0


def test_linear_layers_are_a_low_rank_linear_router():
  weights = {name: drawn.normal(i, R, R) for i, name in enumerate(("first_RR", "second_RR"))}
  weights |= {name: jnp.zeros(R) for name in ("first_R", "second_R")}
  weights["scale_norm_R"] = jnp.ones(R)
  r_NR = drawn.normal(7, N, R)
  got_NR = depth_averaged.hidden(weights, r_NR, 0.0, activation=lambda u_NR: u_NR)
  size_N1 = np.sqrt((np.asarray(r_NR) ** 2).mean(1, keepdims=True))
  assert_close(got_NR, (r_NR / size_N1) @ (weights["first_RR"] @ weights["second_RR"]))


def test_skips_are_unlikely_at_first_and_the_bias_has_no_gradient():
  cfg = depth_averaged.Config(rank=R)
  inputs, variables, module = seen(cfg, virtual=("zero",))
  fresh = jax.jit(module.Router(cfg).init)(jax.random.key(0), inputs)
  np.testing.assert_array_equal(fresh["router_state"]["bias_U"], [0, 0, 0, 0, -1])
  logit_NU = drawn.normal(5, N, E + 1)

  def gates(bias_U):
    plan = moe.decide(logit_NU, inputs.replace(state={"bias_U": bias_U}), cfg)
    return plan.gate_NK.sum(), plan

  grad_U, plan = jax.grad(gates, has_aux=True)(fresh["router_state"]["bias_U"])
  np.testing.assert_array_equal(grad_U, 0)
  assert float(plan.count_U()[E]) == 0
  _, plan = gates(jnp.zeros(E + 1))
  np.testing.assert_array_equal(plan.expert_NK[:, 0], logit_NU.argmax(1))
  assert_close(plan.gate_NK[:, 0], jax.nn.softmax(logit_NU).max(1))


@pytest.mark.slow  # the battery over models has it for the memory of routers/recurrent.py
def test_layers_in_a_scan_average_as_layers_one_by_one_do():
  section = {
    "vocab": 11, "width": 8, "layers": [{"ffn": "moe"}] * 3,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 4},
    "moe": {"num_experts": E, "hidden": 4, "router": {"name": "depth_averaged", "rank": R}},
  }  # fmt: skip
  token_BT = jnp.arange(8).reshape(2, 4)
  variables = drawn.variables(decoder.Model(config.section("model", section)), token_BT)

  def logits(**fields):
    model = decoder.Model(config.section("model", {**section, **fields}))
    return jax.jit(lambda variables: model.apply(variables, token_BT)[0])(variables)

  assert_close(logits(unroll=3), logits())


@pytest.mark.parametrize("router", [recurrent, depth_averaged, mlp])
def test_a_router_without_hidden_units_is_refused(router):
  with pytest.raises(Wrong, match="rank 0"):
    router.Config(rank=0)
