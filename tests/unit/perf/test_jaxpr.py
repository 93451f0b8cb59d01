"""FLOPs by walking a jaxpr: closed forms of every kind of equation."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from moejax.perf import jaxpr

M, D, F = 8, 4, 6
shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
x_MD, w_DF, w_DD = shape(M, D), shape(D, F), shape(D, D)
DOT, SQUARE = 2.0 * M * D * F, 2.0 * M * D * D
tanh = lambda x, w: jnp.tanh(x @ w)


def count(fn, *args):
  return jaxpr.flops(fn, *args).flops


def test_a_product_is_two_per_multiply_add_and_its_gradient_twice_that():
  assert count(tanh, x_MD, w_DF) == DOT
  loss = lambda x, w: tanh(x, w).sum()
  assert count(jax.grad(loss, argnums=(0, 1)), x_MD, w_DF) == 3 * DOT
  assert count(functools.partial(jnp.einsum, "BTD,DF->BTF"), shape(2, M, D), w_DF) == 2 * DOT
  assert count(jnp.dot, shape(M), shape(M)) == 0


def test_a_scanned_body_counts_as_often_as_it_runs_also_in_the_gradient():
  def loss(x, w):
    return jax.lax.scan(lambda c, _: (tanh(c, w), None), x, length=5)[0].sum()

  assert count(loss, x_MD, w_DD) == 5 * SQUARE
  assert count(jax.grad(loss, argnums=(0, 1)), x_MD, w_DD) == 3 * 5 * SQUARE
  again = lambda x, w: jax.checkpoint(tanh)(x, w).sum()
  assert count(jax.grad(again, argnums=(0, 1)), x_MD, w_DD) == 4 * SQUARE  # the forward pass twice


def test_a_branch_counts_as_the_dearest_one():
  fn = lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)
  assert count(fn, x_MD, w_DD) == 2 * SQUARE


def test_a_loop_of_unknown_length_counts_once_and_is_told_apart():
  def fn(x, w, n):
    return jax.lax.fori_loop(0, n, lambda _, c: tanh(c, w), x @ w)

  found = jaxpr.flops(fn, x_MD, w_DD, jax.ShapeDtypeStruct((), jnp.int32))
  assert found == jaxpr.Count(2 * SQUARE, open_ended=SQUARE)
  assert count(lambda x, w: fn(x, w, 7), x_MD, w_DD) == 8 * SQUARE  # a scan


def test_the_inside_of_a_shard_map_counts_on_every_device():
  mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
  fn = jax.shard_map(tanh, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
  assert count(fn, x_MD, w_DF) == DOT


def test_custom_derivatives_are_walked():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
  assert count(product, x_MD, w_DF) == DOT
  loss = lambda x, w: product(x, w).sum()
  assert count(jax.grad(loss, argnums=(0, 1)), x_MD, w_DF) == 3 * DOT


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_has_the_multiply_adds_of_its_windows(groups):
  x, w = shape(2, 4, 10), shape(6, 4 // groups, 3)
  fn = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "VALID", feature_group_count=groups)
  assert count(fn, x, w) == 2.0 * (2 * 6 * 8) * 3 * 4 / groups


def test_a_ragged_product_counts_each_row_once():
  size_E = jax.ShapeDtypeStruct((3,), jnp.int32)
  fn = lambda x, w, size: jax.lax.ragged_dot(x, w, size).sum()
  assert count(fn, x_MD, shape(3, D, F), size_E) == DOT
  assert count(jax.grad(fn, argnums=(0, 1)), x_MD, shape(3, D, F), size_E) == 3 * DOT
