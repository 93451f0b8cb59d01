"""Random keys: named streams of one seed, so that a new draw moves none of the old ones.

A run is a function of (config, seed). The key of a draw is the key of its step, folded with the
stream and then with the layer; it is never the next split of a key that other draws share.
"""

import zlib

import jax


def stream(key: jax.Array, name: str) -> jax.Array:
  """The key of a named stream: params, router, dropout, data, sample, ...

  >>> key = jax.random.key(0)
  >>> bool((stream(key, "router") == stream(key, "dropout")).all())
  False
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))  # hash() differs between processes


def step_key(seed: int, step) -> jax.Array:
  """The key of one training step; `step` may be traced."""
  return jax.random.fold_in(jax.random.key(seed), step)
