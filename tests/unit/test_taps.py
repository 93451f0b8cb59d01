"""Taps: what a gradient tap returns is the statistic of the true gradient, also inside a scan."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
from close import assert_close

from moejax.core import taps

L, N, D = 3, 5, 4
WANTED, NOTHING = (types.SimpleNamespace(taps=names) for names in (("taylor_D",), ()))


def taylor(x_ND, grad_ND):
  return (x_ND * grad_ND).sum(0) ** 2


def layer(x_ND, w_DD):
  return jnp.tanh(x_ND @ w_DD)


class Body(nn.Module):
  ctx: types.SimpleNamespace

  @nn.compact
  def __call__(self, x_ND, _):
    w_DD = self.param("w_DD", jax.nn.initializers.normal(1.0), (D, D))
    x_ND = taps.gradient(self, self.ctx, "taylor_D", x_ND, taylor)
    return layer(x_ND, w_DD), None


def scanned(ctx):
  axes, split = {"params": 0, "taps": 0}, {"params": True}
  return nn.scan(nn.remat(Body), variable_axes=axes, split_rngs=split, length=L)(ctx)


def test_a_forward_tap_costs_nothing_unless_it_is_wanted():
  called = []
  offer = lambda: called.append(1) or jnp.ones(2)
  assert taps.forward(NOTHING, taylor_D=offer) == {} and not called
  assert set(taps.forward(WANTED, taylor_D=offer, other_D=offer)) == {"taps/taylor_D"}


def test_a_gradient_tap_is_the_statistic_of_the_true_gradient():
  x_ND = jax.random.normal(jax.random.key(0), (N, D))
  variables = scanned(WANTED).init(jax.random.key(1), x_ND, None)
  assert variables["taps"]["taylor_D"].shape == (L, D)
  loss = lambda variables: jnp.sum(jnp.sin(scanned(WANTED).apply(variables, x_ND, None)[0]))
  got = jax.jit(jax.grad(loss))(variables)

  def plain(shift_LND, w_LDD):
    x, seen = x_ND, []
    for shift_ND, w_DD in zip(shift_LND, w_LDD, strict=True):
      x = x + shift_ND
      seen.append(x)
      x = layer(x, w_DD)
    return jnp.sum(jnp.sin(x)), jnp.stack(seen)

  grads = jax.jit(jax.grad(plain, argnums=(0, 1), has_aux=True))
  (grad_LND, grad_LDD), x_LND = grads(jnp.zeros((L, N, D)), variables["params"]["w_DD"])
  assert_close(got["taps"]["taylor_D"], jax.vmap(taylor)(x_LND, grad_LND))
  assert_close(got["params"]["w_DD"], grad_LDD)


def test_a_tap_that_is_not_wanted_leaves_no_trace():
  variables = jax.eval_shape(
    lambda: scanned(NOTHING).init(jax.random.key(1), jnp.ones((N, D)), None)
  )
  assert set(variables) == {"params"}
