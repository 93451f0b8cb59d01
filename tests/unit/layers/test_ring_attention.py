"""Attention with the sequence cut over devices against attention on one, and its own backward."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.attention import gqa
from moejax.core import axes
from moejax.layers import ring_attention
from moejax.perf import hlo

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


@pytest.mark.parametrize(
  ("cfg", "swaps"), [(gqa.Config(H, J), True), (gqa.Config(H, J, window=6), False)]
)
def test_where_rows_are_cut_nothing_but_the_ring_moves(cfg, swaps):
  """One row for each part of the rows: [B, T] comes to the ring as it lies."""
  mesh = mesh_of(data=2, context=4)
  with jax.set_mesh(mesh):
    cut = axes.by_token(B, T)
    assert cut == P(("data",), "context") and axes.by_token(8, T) == P(("data", "context"))
    assert axes.by_token(3, T) == axes.by_token(2, 6) == P()
    at = NamedSharding(mesh, cut)
    shapes = [jax.ShapeDtypeStruct((B, T, h, A), jnp.float32, sharding=at) for h in (H, J, J)]
    run = lambda q, k, v: gqa.attended(q, k, v, None, cfg).reshape(B * T, H * A)
    on = NamedSharding(mesh, P(("data", "context")))
    text = jax.jit(run, out_shardings=on).lower(*shapes).compile().as_text()
  found = hlo.collectives(text)
  assert {one.kind for one in found} == {"collective-permute"}
  assert any("while" not in one.where for one in found) == swaps
