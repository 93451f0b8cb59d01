"""Attention with the sequence cut over devices against attention on one, and its own backward."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.sharding import AxisType

from moejax.attention import gqa
from moejax.layers import ring_attention

B, T, H, J, A = 2, 32, 4, 2, 4
SEGMENT_BT = jnp.array([[1] * 5 + [2] * 14 + [3] * 10 + [0] * 3, [1] * T])


def mesh_of(**sizes):
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def outcome(cfg, packed):
  """(loss, y, gradients), by the way that the mesh in context asks for."""
  q_BTHA, k_BTJA, v_BTJA = (drawn.normal(i, B, T, h, A) for i, h in enumerate((H, J, J)))
  segment_BT = SEGMENT_BT if packed else None

  def loss(*qkv):
    y_BTHA = gqa.attended(*qkv, segment_BT, cfg)
    return jnp.sum(jnp.sin(3 * y_BTHA)), y_BTHA

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q_BTHA, k_BTJA, v_BTJA)


@pytest.mark.parametrize(
  ("cfg", "packed", "sizes"),
  [
    (gqa.Config(H, J), True, {"context": 4}),
    (gqa.Config(H, J, window=6, anchors=2), True, {"data": 2, "context": 2, "tensor": 2}),
    (gqa.Config(H, J, window=6), True, {"context": 8}),
    pytest.param(gqa.Config(H, J), False, {"context": 8}, marks=pytest.mark.mesh),
    pytest.param(gqa.Config(H, J, window=9), False, {"context": 8}, marks=pytest.mark.mesh),
    pytest.param(gqa.Config(H, J, window=1), False, {"context": 2}, marks=pytest.mark.mesh),
    pytest.param(gqa.Config(H, J, window=99), True, {"context": 4}, marks=pytest.mark.mesh),
  ],
)
def test_a_ring_sees_what_one_device_sees(cfg, packed, sizes):
  want = outcome(cfg, packed)
  with jax.set_mesh(mesh_of(**sizes)):
    assert ring_attention.fits(T)
    assert_close(outcome(cfg, packed), want)


def test_sixteen_bit_numbers_keep_their_dtype():
  ones = lambda heads: jnp.ones((B, T, heads, A), jnp.bfloat16)
  with jax.set_mesh(mesh_of(context=2)):
    y_BTHA = jax.jit(gqa.attended, static_argnums=4)(ones(H), ones(J), ones(J), None, gqa.Config())
  assert y_BTHA.dtype == jnp.bfloat16
  np.testing.assert_allclose(y_BTHA.astype(jnp.float32), 1, rtol=1e-2)


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_zigzag_gives_every_device_the_same_pairs(devices):
  kept = ring_attention.order(2 * devices, devices, None, 0)
  held = [kept.chunks(i) for i in range(devices)]
  assert sorted(sum(held, ())) == list(range(2 * devices))
  assert {sum(chunk + 1 for chunk in two) for two in held} == {2 * devices + 1}
