"""Vectors of tokens looked up on a mesh: the same vectors, the same gradient of the table."""

import jax
import jax.numpy as jnp
import pytest
from close import assert_close

from moejax.layers import basic


@pytest.mark.parametrize("vocab", [12, 11])
@pytest.mark.parametrize("batch", [4, 3])
def test_a_lookup_on_a_mesh_is_a_lookup(vocab, batch):
  """Tokens and table cut over it, or whole where it does not divide them; a token comes twice."""
  keys = jax.random.split(jax.random.key(0), 3)
  table_VD = jax.random.normal(keys[0], (vocab, 6))
  token_BT = jax.random.randint(keys[1], (batch, 5), 0, vocab).at[0, :2].set(vocab - 1)
  weight_BTD = jax.random.normal(keys[2], (batch, 5, 6))

  def outcome():
    loss = lambda table_VD: jnp.sum(jnp.sin(basic.lookup(table_VD, token_BT)) * weight_BTD)
    return jax.jit(jax.value_and_grad(loss))(table_VD)

  want = outcome()
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    assert_close(outcome(), want)
