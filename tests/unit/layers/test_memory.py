"""Memory layers against brute force over all n^2 slots, and the limits in which they meet."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from close import assert_close
from jax.extend import core
from oracle.layers import ultramem as loops

from moejax.core import plugin
from moejax.core.plan import RouterInputs
from moejax.layers import peer, pkm, product_keys, ultramem

N, D = 5, 7
LAYERS = ("pkm", "peer", "ultramem")
CASES = [(name, case) for name in LAYERS for case in oracle.load("layers", name).CASES]
search = jax.jit(ultramem.lookup, static_argnums=5)
STATE = {"u_R": [1.0, 0.5, 0.2], "v_R": [0.7, 1.0, 0.3]}


def layer(cfg):
  return plugin.module(cfg).Layer(cfg)


@functools.cache
def variables(cfg):
  """With u and v that are no singular vectors: the oracle reads the same."""
  found = drawn.variables(layer(cfg), drawn.normal(0, N, D), RouterInputs())
  state = {key: jnp.array(value)[: getattr(cfg, "rank", 0)] for key, value in STATE.items()}
  return {**found, "router_state": {"router": state}}


@functools.partial(jax.jit, static_argnums=0)
def outcome(cfg, params, x_ND):
  """((sum of weighted outputs, (outputs, sums)), gradients to parameters and tokens)."""

  def loss(params, x_ND):
    y_ND, sums, _ = layer(cfg).apply({**variables(cfg), "params": params}, x_ND, RouterInputs())
    return jnp.sum(y_ND * weight_ND()), (y_ND, sums)

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x_ND)


def weight_ND():
  return drawn.normal(9, N, D)


@pytest.mark.parametrize(("name", "cfg"), CASES)
def test_output_and_gradients_are_those_of_brute_force(name, cfg):
  """Gradients: differences of the loops in float64 along a random direction of every leaf."""
  params, x_ND = variables(cfg)["params"], drawn.normal(1, N, D)
  (_, (y_ND, sums)), grads = outcome(cfg, params, x_ND)
  wide = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
  given, state = wide((params, x_ND)), wide(variables(cfg)["router_state"])
  output = lambda params, x_ND: oracle.load("layers", name).output(params, state, x_ND, cfg)
  assert_close(y_ND, output(*given))
  assert sums["count_P"].sum() == N * cfg.heads * cfg.k

  total = lambda *given: np.sum(np.asarray(weight_ND(), np.float64) * output(*given))
  for at, grad in enumerate(jax.tree.leaves(grads)):
    assert np.abs(grad).max() > 0
    direction = np.random.default_rng(at).normal(size=grad.shape)
    np.testing.assert_allclose(
      np.sum(wide(grad) * direction), slope(total, given, at, direction), rtol=1e-4, atol=1e-4
    )


def slope(total, given, at, direction, step=1e-6):
  """Of total(*given) along a direction of its leaf number `at`."""
  leaves, structure = jax.tree.flatten(given)
  moved = lambda by: [leaf + by * direction if i == at else leaf for i, leaf in enumerate(leaves)]
  up, down = (total(*structure.unflatten(moved(by))) for by in (step, -step))
  return (up - down) / (2 * step)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_product_keys_find_the_best_of_all_sums(k):
  first_NHQ, second_NHQ = drawn.normal(0, 4, 2, 8), drawn.normal(1, 4, 2, 8)
  score_NHK, slot_NHK = jax.jit(product_keys.lookup, static_argnums=2)(first_NHQ, second_NHQ, k)
  sum_NHP = (first_NHQ[..., :, None] + second_NHQ[..., None, :]).reshape(4, 2, 64)
  want_NHK, want = jax.lax.top_k(sum_NHP, k)
  assert np.array_equal(slot_NHK, want) and np.array_equal(score_NHK, want_NHK)


def test_experts_that_answer_one_are_a_product_key_memory():
  cfg = peer.Config(keys=8, k=4, key_width=6, activation="identity")
  params = variables(cfg)["params"]
  same = jnp.zeros_like(params["in_PD"]).at[:, 0].set(1.0)
  x_ND = drawn.normal(1, N, D).at[:, 0].set(1.0)
  _, (got_ND, _) = outcome(cfg, {**params, "in_PD": same}, x_ND)[0]
  as_pkm = {"router": params["router"], "value_PF": params["value_PD"]}
  _, (want_ND, _) = outcome(pkm.Config(keys=8, k=4, key_width=6), as_pkm, x_ND)[0]
  np.testing.assert_array_equal(got_ND, want_ND)


def test_one_component_and_a_core_of_one_multiply_where_product_keys_add():
  first_NHQR, second_NHQR = (jnp.abs(drawn.normal(seed, 4, 2, 8, 1)) for seed in (0, 1))
  one = jnp.ones((1, 1, 1))
  found = search(first_NHQR, second_NHQR, one, one[0, 0], one[0, 0], 5)
  product_NHP = (first_NHQR * second_NHQR[..., 0][:, :, None]).reshape(4, 2, 64)
  want_NHK, slot_NHK = jax.lax.top_k(product_NHP, 5)
  np.testing.assert_array_equal(found[1], slot_NHK)
  np.testing.assert_array_equal(found[0][..., 0], want_NHK)


def retrieve(core_CRR, first_QR, second_QR, k=4):
  """Slots of one head of one token, by the layer and by brute force."""

  @jax.jit
  def found(core_CRR, first_QR, second_QR):
    u_R, v_R = ultramem.leading(core_CRR, jnp.ones(2), jnp.ones(2))
    return search(first_QR[None, None], second_QR[None, None], core_CRR, u_R, v_R, k)[1][0, 0]

  slot_K = found(core_CRR, first_QR, second_QR)
  return slot_K.tolist(), loops.brute(first_QR, second_QR, core_CRR, k)


def test_a_core_of_rank_one_retrieves_exactly_and_another_may_miss():
  """Where no product is negative: keys are taken with a positive part along u and v."""
  first_QR, second_QR = (np.abs(drawn.normal(seed, 8, 2)) for seed in (0, 1))
  core_RR = np.outer([1.0, 0.4], [0.3, 0.9])
  halves = jnp.array([0.25 * core_RR, 0.75 * core_RR], jnp.float32)
  got, want = retrieve(halves, first_QR, second_QR)
  assert got == want
  crossed = jnp.array([np.eye(2)], jnp.float32)  # two equal singular values: u and v say little
  sharp = 10 * np.eye(2)[[0, 1] * 4] * np.linspace(1, 2, 8)[:, None]
  got, want = retrieve(crossed, sharp, sharp)
  assert set(got) != set(want)


def test_nothing_has_the_size_of_all_slots_for_every_token():
  def sizes(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (var.aval.shape for var in eqn.outvars)
      for value in eqn.params.values():
        for inner in value if isinstance(value, list | tuple) else [value]:
          if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
            yield from sizes(getattr(inner, "jaxpr", inner))

  n, tokens = 64, 96  # n^2 slots of 7 numbers are 28672; tokens times slots 393216
  for cfg in (
    pkm.Config(keys=n, heads=1, k=4, key_width=4),
    peer.Config(keys=n, heads=1, k=4, key_width=4),
    ultramem.Config(loops.Table(width=D - 1, pre=D), keys=n, k=4, key_width=4),
  ):
    x_ND = jax.ShapeDtypeStruct((tokens, D), jnp.float32)
    made = jax.eval_shape(layer(cfg).init, jax.random.key(0), x_ND, RouterInputs())
    total = lambda made, x_ND, cfg=cfg: layer(cfg).apply(made, x_ND, RouterInputs())[0].sum()
    found = list(sizes(jax.make_jaxpr(jax.grad(total))(made, x_ND).jaxpr))
    assert max(map(np.prod, found)) < tokens * n * n / 4, cfg
    assert (tokens, 1, n) in found or (tokens, 1, n, 2) in found  # the walk sees inside
