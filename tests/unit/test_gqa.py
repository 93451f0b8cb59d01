"""Attention by blocks of queries against the library's, whole."""

import jax
import jax.numpy as jnp
import pytest
from close import assert_close

from moejax.attention import gqa
from moejax.core.plugin import Wrong

B, T, H, J, A = 2, 11, 4, 2, 6
SEGMENT_BT = jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 11])


def opening(segment_BT):
  """The place of each token in its document, counted."""
  if segment_BT is None:
    return jnp.tile(jnp.arange(T), (B, 1))
  rows = [[sum(s == row[t] for s in row[:t]) for t in range(T)] for row in segment_BT.tolist()]
  return jnp.array(rows)


def whole(q_BTHA, k_BTJA, v_BTJA, segment_BT, cfg):
  """All scores at once."""
  at_T = jnp.arange(T)
  seen_BTT = (at_T[:, None] >= at_T[None])[None]
  if cfg.window is not None:
    near_BTT = (at_T[:, None] - at_T[None] < cfg.window)[None]
    seen_BTT &= near_BTT | (opening(segment_BT) < cfg.anchors)[:, None]
  if segment_BT is not None:
    seen_BTT &= segment_BT[:, :, None] == segment_BT[:, None]
  seen_BHTT = jnp.broadcast_to(seen_BTT[:, None], (B, 1, T, T))
  return jax.nn.dot_product_attention(q_BTHA, k_BTJA, v_BTJA, mask=seen_BHTT)


@pytest.mark.parametrize(
  ("cfg", "packed"),
  [
    (gqa.Config(H, J, block=4), True),
    (gqa.Config(H, J, block=3, window=5), False),
    (gqa.Config(H, J, block=3, window=2, anchors=2), True),
  ],
)
def test_blocks_see_what_the_whole_sees(cfg, packed):
  keys = jax.random.split(jax.random.key(0), 3)
  q_BTHA = jax.random.normal(keys[0], (B, T, H, A))
  k_BTJA, v_BTJA = (jax.random.normal(key, (B, T, J, A)) for key in keys[1:])
  segment_BT = SEGMENT_BT if packed else None

  def outcome(attend):
    def loss(*qkv):
      y_BTHA = attend(*qkv, segment_BT, cfg)
      return jnp.sum(jnp.sin(y_BTHA)), y_BTHA

    grad_fn = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    return jax.jit(grad_fn)(q_BTHA, k_BTJA, v_BTJA)

  assert_close(outcome(gqa.attend), outcome(whole))


def test_sixteen_bit_numbers_keep_their_dtype():
  q_BTHA = jnp.ones((1, T, H, A), jnp.bfloat16)
  k_BTJA = jnp.ones((1, T, J, A), jnp.bfloat16)
  y_BTHA = gqa.attend(q_BTHA, k_BTJA, k_BTJA, None, gqa.Config(H, J))
  assert y_BTHA.dtype == jnp.bfloat16
  assert_close(y_BTHA.astype(jnp.float32), jnp.ones((1, T, H, A)))


@pytest.mark.parametrize("fields", [{"anchors": 2}, {"anchors": -1, "window": 3}])
def test_anchors_are_beside_a_window(fields):
  with pytest.raises(Wrong, match="gqa: anchors is .* set one"):
    gqa.Config(**fields)


def test_a_query_pays_for_its_window_and_for_the_anchors_beyond_it():
  cost = lambda **fields: gqa.flops(gqa.Config(H, J, A, **fields), 8, T) / (4.0 * H * A)
  keys = lambda t: min(t + 1, 4) + min(2, max(t + 1 - 4, 0))
  want = sum(map(keys, range(T))) / T - sum(min(t + 1, 4) for t in range(T)) / T
  assert cost(window=4, anchors=2) - cost(window=4) == pytest.approx(want)


MESHES = [None, ((2, 2), ("fsdp", "tensor")), ((2, 2), ("data", "expert"))]


@pytest.mark.parametrize("on", MESHES, ids=str)
@pytest.mark.parametrize(
  ("window", "packed"), [(None, True), pytest.param(40, False, marks=pytest.mark.mesh)]
)
def test_the_tpu_kernel_sees_the_same_on_any_mesh(window, packed, on):
  """In interpret mode, forward and gradients, against the blocks of plain XLA."""
  B, T, H, J, A = 4, 256, 4, 2, 128
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (B, T, heads, A)) for key, heads in zip(keys, (H, J, J), strict=True)
  )
  segment_BT = (jnp.arange(T)[None] + 31 * jnp.arange(B)[:, None]) // 100 if packed else None
  cfg = gqa.Config(H, J, window=window, block=128)

  def outcome(attend, **options):
    loss = lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, segment_BT, cfg, **options)))
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

  want = outcome(gqa.attend)
  if on is None:
    assert_close(outcome(gqa.splash, interpret=True), want)
    return
  auto = (jax.sharding.AxisType.Auto,) * 2
  with jax.set_mesh(jax.make_mesh(*on, auto, devices=jax.devices()[:4])):
    assert_close(outcome(gqa.splash, interpret=True), want)


def test_what_the_tpu_kernel_has_no_mask_or_block_for_is_refused():
  x = jnp.zeros((1, 200, 2, 128))
  for cfg in (gqa.Config(2, 2), gqa.Config(2, 2, window=3, anchors=1, block=128)):
    with pytest.raises(NotImplementedError, match="anchors|200 tokens"):
      gqa.splash(x, x, x, None, cfg)
