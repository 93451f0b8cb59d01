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
