"""Taps: statistics of activations and of their gradients, from the places a model offers.

`ctx.taps` names the taps a caller wants; nothing is computed for a tap that is not asked for.
A forward tap returns sums over tokens, which join those of the layer; the taps of a trace
(layers/moe.py) are arrays by token instead, and whoever asks for them adds nothing up. A gradient
tap is an identity whose dummy argument has the shape of the statistic: the "gradient" with respect
to the dummy is the statistic of the activation's gradient, reduced on the spot, so that nothing of
size [L, N, ...] exists. The dummies are the collection `taps`; differentiate with respect to it.
"""

import functools

import jax
import jax.numpy as jnp

COLLECTION = "taps"


def forward(ctx, **offered) -> dict:
  """The sums asked for among those a place offers; each offer is a function, called if wanted.

  >>> import types
  >>> ctx = types.SimpleNamespace(taps=("square_D",))
  >>> forward(ctx, square_D=lambda: 4, cube_D=lambda: 1 / 0)
  {'taps/square_D': 4}
  """
  return {f"taps/{name}": make() for name, make in offered.items() if name in ctx.taps}


def gradient(module, ctx, name: str, x: jax.Array, statistic) -> jax.Array:
  """x, in a Linen module; the gradient of the tap, if wanted, is statistic(x, gradient of x)."""
  if name not in ctx.taps:
    return x
  start = lambda: zeros(statistic, x)
  return identity(statistic, x, module.variable(COLLECTION, name, start).value)


def zeros(statistic, x) -> jax.Array:
  """The dummy of a gradient tap on x."""
  shape = jax.eval_shape(statistic, x, x)
  return jnp.zeros(shape.shape, shape.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def identity(statistic, x: jax.Array, dummy: jax.Array) -> jax.Array:
  """x; the cotangent of `dummy` is statistic(x, cotangent of x), a sum over tokens.

  >>> loss = lambda x_ND, dummy_D: (3 * identity(lambda x, g: g.sum(0), x_ND, dummy_D)).sum()
  >>> jax.grad(loss, argnums=1)(jnp.ones((5, 2)), jnp.zeros(2)).tolist()
  [15.0, 15.0]
  """
  del statistic, dummy
  return x


def _identity_fwd(statistic, x, dummy):
  del statistic, dummy
  return x, x


def _identity_bwd(statistic, x, grad):
  return grad, statistic(x, grad)


identity.defvjp(_identity_fwd, _identity_bwd)
