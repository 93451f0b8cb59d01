"""Arrays in the memory of the host: what is there is worked on a layer at a time, on the device.

A traced array knows in which memory it is, so nothing here has a setting. Stacked leaves have one
leading axis over layers. A gradient is where its parameter is.
"""

import jax
import jax.numpy as jnp

HOST = "pinned_host"


def is_away(leaf) -> bool:
  """Whether a traced array is in the memory of the host.

  >>> is_away(jnp.zeros(1)), is_away(0.5)
  (False, False)
  """
  return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def any_away(tree) -> bool:
  """Whether some leaf is."""
  return any(map(is_away, jax.tree.leaves(tree)))


def near(tree):
  """A tree of traced arrays, all of them on the device."""
  here = lambda leaf: jax.device_put(leaf, jax.memory.Space.Device) if is_away(leaf) else leaf
  return jax.tree.map(here, tree)


def back(leaf: jax.Array, old: jax.Array) -> jax.Array:
  """A traced array, in the memory that the one it replaces has."""
  return jax.device_put(leaf, jax.memory.Space.Host) if is_away(old) else leaf


def layer(tree, i):
  """Layer i of stacked leaves, on the device; numbers as they are.

  >>> layer((jnp.arange(3), 0.5), 1)
  (Array(1, dtype=int32), 0.5)
  """
  at = jax.lax.dynamic_index_in_dim
  return near(jax.tree.map(lambda a: at(a, i, keepdims=False) if jnp.ndim(a) else a, tree))


def written_over(fn, own, given):
  """fn(own, given) of stacked layers, one after the other and in the place of `own`."""

  def one(i, own):
    new = fn(layer(own, i), layer(given, i))
    put = jax.lax.dynamic_update_index_in_dim
    return jax.tree.map(lambda old, one: put(old, back(one, old), i, 0), own, new)

  return jax.lax.fori_loop(0, len(jax.tree.leaves(own)[0]), one, own)


def mapped(fn, first, *rest):
  """jax.tree.map(fn, first, *rest); leaves that are away layer by layer, and back."""

  def one(leaf, *others):
    if not is_away(leaf):
      return fn(leaf, *others)
    act = lambda _, part: (None, back(fn(*near(part)), leaf))
    return jax.lax.scan(act, None, (leaf, *others))[1]

  return jax.tree.map(one, first, *rest)


def squares(fn, first, *rest) -> jax.Array:
  """The sum of the squares of jax.tree.map(fn, first, *rest), in float32.

  >>> float(squares(lambda a, b: a + b, {"x": jnp.arange(3.0)}, {"x": 1.0}))
  14.0
  """
  of = lambda *part: jnp.sum(jnp.square(fn(*part).astype(jnp.float32)))

  def one(leaf, *others):
    if not is_away(leaf):
      return of(leaf, *others)
    add = lambda i, total: total + of(*layer((leaf, *others), i))
    return jax.lax.fori_loop(0, len(leaf), add, jnp.float32(0))

  return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(one, first, *rest))))
