"""Causal attention with the sequence cut over the mesh axis `context`: keys travel in a ring.

Paper:  Liu et al. 2023 (Ring Attention), arXiv:2310.01889; the zig-zag order: Brandon et al. 2023
        (Striped Attention), arXiv:2311.09431, asks for the same balance by stripes.
Cost:   per device and layer, forward: keys and values go round once, 2 B T J A numbers; backward
        twice that. Scores exist for one pair of chunks at a time, (T / 2c)^2 of them a head.

Where the mesh cuts [B, T] in T (core/axes.py: by_token) a device comes with the chunks that are its
own in the order of the sequence; where it cuts rows, they are exchanged for these at the border.
A sequence is 2c chunks for c devices, two on each. In zig-zag order device i holds chunks i and
2c - 1 - i, so that every device sees equally many pairs below the diagonal. With a window alone the
work is equal without it: chunks stay where they are, and the ring ends where the window does.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax.core import axes

AXIS = "context"


class Order(typing.NamedTuple):
  """Which chunks a device holds, and how far keys travel."""

  devices: int
  zigzag: bool
  window: int | None
  steps: int

  def chunks(self, device):
    """The two chunks of a device, in the order of the sequence."""
    if self.zigzag:
      return device, 2 * self.devices - 1 - device
    return 2 * device, 2 * device + 1


def order(T: int, devices: int, window: int | None, anchors: int) -> Order:
  """The order of a sequence of T.

  >>> order(64, 4, None, 0)
  Order(devices=4, zigzag=True, window=None, steps=4)
  >>> order(64, 4, 18, 0).steps  # 17 keys before a token lie on two devices, at most
  3
  """
  if window is None or anchors:
    return Order(devices, True, window, devices)
  steps = -(-(window - 1) // (T // devices)) + 1
  return Order(devices, False, window, min(devices, steps))


def fits(T: int) -> bool:
  """Whether the mesh in context cuts sequences of T."""
  devices = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
  return devices > 1 and T % (2 * devices) == 0


def attend(q_BTHA, k_BTJA, v_BTJA, segment_BT, anchor_BT, window: int | None, anchors: int = 0):
  """What attention/gqa.py computes, on the mesh in context; see fits()."""
  mesh = jax.sharding.get_abstract_mesh()
  (B, T, _, A), J = q_BTHA.shape, k_BTJA.shape[2]
  rows = tuple(a for a in axes.TOKENS if a in mesh.shape and a != AXIS)
  rows = rows if B % math.prod(mesh.shape[a] for a in rows) == 0 else ()
  heads = axes.spec("k_J", (J,), axes.roles()["attention"], mesh)[0]
  by_head, by_token = P(rows, AXIS, heads), P(rows, AXIS)
  kept = order(T, mesh.shape[AXIS], window, anchors)

  def local(q_bthA, k_btjA, v_btjA, marks):
    b, t, h, _ = q_bthA.shape
    j = k_btjA.shape[2]
    q_2bjGtA = (q_bthA * A**-0.5).reshape(b, 2, t // 2, j, h // j, A).transpose(1, 0, 3, 4, 2, 5)
    pair = lambda x: x.reshape(b, 2, t // 2, *x.shape[2:]).swapaxes(0, 1)
    heads_first = lambda x: pair(x).swapaxes(2, 3)
    parts = (q_2bjGtA, heads_first(k_btjA), heads_first(v_btjA), jax.tree.map(pair, marks))
    y_2bjGtA: typing.Any = _home(_ring(*jax.tree.map(lambda x: _away(x, kept), parts), kept), kept)
    return y_2bjGtA.transpose(1, 0, 4, 2, 3, 5).reshape(b, t, h, A).astype(v_btjA.dtype)

  marks = {"segment": segment_BT, "anchor": anchor_BT}
  marks = {name: mark for name, mark in marks.items() if mark is not None}
  specs = {"in_specs": (by_head, by_head, by_head, by_token), "out_specs": by_head}
  # check_vma is off: conditions on the place of a device carry no types of varying axes
  return jax.shard_map(local, **specs, check_vma=False)(q_BTHA, k_BTJA, v_BTJA, marks)


def _swaps(kept: Order):
  """[(device, holder)] of the even chunks, and of the odd ones: two permutations."""
  holder = lambda chunk: min(chunk, 2 * kept.devices - 1 - chunk)
  return [[(i, holder(2 * i + odd)) for i in range(kept.devices)] for odd in (0, 1)]


def _sorted(even, odd):
  """The two chunks of this device with their places told by parity, or the way back."""
  me_even = lax.axis_index(AXIS) % 2 == 0
  return jnp.where(me_even, even, odd), jnp.where(me_even, odd, even)


def _away(x_2, kept: Order):
  """Two neighbouring chunks to the zig-zag order."""
  if not kept.zigzag:
    return x_2
  parts = [lax.ppermute(x, AXIS, to) for x, to in zip(x_2, _swaps(kept), strict=True)]
  return jnp.stack(_sorted(*parts))


def _home(x_2, kept: Order):
  """The inverse."""
  if not kept.zigzag:
    return x_2
  back = [[(to, i) for i, to in swap] for swap in _swaps(kept)]
  parts = zip(_sorted(x_2[0], x_2[1]), back, strict=True)
  return jnp.stack([lax.ppermute(x, AXIS, to) for x, to in parts])


def _turn(tree, kept: Order, by: int = 1):
  """Everything to the device `by` places further on."""
  to = [(i, (i + by) % kept.devices) for i in range(kept.devices)]
  return jax.tree.map(lambda x: lax.ppermute(x, AXIS, to), tree)


def _pairs(step, kept: Order, t: int):
  """(a, b, chunk of query a, chunk of key b, whether any is seen) for pairs that can be."""
  me = lax.axis_index(AXIS)
  mine, theirs = kept.chunks(me), kept.chunks((me - step) % kept.devices)
  for a in (0, 1):
    for b in (0, 1):
      if kept.zigzag and (a, b) == (0, 1):
        continue  # the early chunk of a device is before every late one
      seen = theirs[b] <= mine[a]
      if not kept.zigzag:  # the nearest key of the chunk is within the window
        seen &= (mine[a] - theirs[b] - 1) * t + 1 < kept.window
      yield a, b, mine[a], theirs[b], seen


def _mask(at, from_, query, key, t, kept: Order):
  """[b, 1, 1, t, t]: what queries of chunk `at` see of keys of chunk `from_`."""
  query_t1, key_1t = at * t + jnp.arange(t)[:, None], from_ * t + jnp.arange(t)[None]
  seen_btt = (query_t1 >= key_1t)[None]
  if kept.window is not None:
    near_btt = (query_t1 - key_1t < kept.window)[None]
    seen_btt &= near_btt | key["anchor"][:, None] if "anchor" in key else near_btt
  if "segment" in key:
    seen_btt &= query["segment"][:, :, None] == key["segment"][:, None]
  return seen_btt[:, None, None]


def _einsum(spec, *arrays):
  wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
  return jnp.einsum(spec, *arrays, preferred_element_type=wide)


_at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(q_2, k_2, v_2, marks, kept: Order):
  """y_2 of the two chunks of queries here, with all keys they see."""
  return _forward(q_2, k_2, v_2, marks, kept)[0]


def _forward(q_2, k_2, v_2, marks, kept):
  t, wide = q_2.shape[-2], jnp.promote_types(q_2.dtype, jnp.float32)

  def add(state, q, k, v, mask):
    y, top, total = state
    score = jnp.where(mask, _einsum("bjGtA,bjTA->bjGtT", q, k), -1e30)
    new = jnp.maximum(top, score.max(-1))
    weight = jnp.where(mask, jnp.exp(score - new[..., None]), 0)
    old = jnp.exp(top - new)
    more = _einsum("bjGtT,bjTA->bjGtA", weight.astype(v.dtype), v)
    return y * old[..., None] + more, new, total * old + weight.sum(-1)

  def step(state, i):
    chunks, (k_2, v_2, theirs) = list(state[0]), state[1]
    for a, b, at, from_, seen in _pairs(i, kept, t):
      mask = _mask(at, from_, _at(marks, a), _at(theirs, b), t, kept)
      here = functools.partial(add, q=q_2[a], k=k_2[b], v=v_2[b], mask=mask)
      chunks[a] = lax.cond(seen, here, lambda old: old, chunks[a])
    return (tuple(chunks), _turn(state[1], kept)), None

  shape = q_2.shape[1:-1]
  empty = (jnp.zeros(q_2.shape[1:], wide), jnp.full(shape, -1e30, wide), jnp.zeros(shape, wide))
  (chunks, _), _ = lax.scan(step, ((empty, empty), (k_2, v_2, marks)), jnp.arange(kept.steps))
  y_2 = jnp.stack([y / total[..., None] for y, _, total in chunks])  # a token sees itself
  log_2 = jnp.stack([top + jnp.log(total) for _, top, total in chunks])
  return y_2, (q_2, k_2, v_2, marks, y_2, log_2)


def _backward(kept, saved, dy_2):
  """Keys go round again, and their gradients with them."""
  q_2, k_2, v_2, marks, y_2, log_2 = saved
  t, delta_2 = q_2.shape[-2], (dy_2 * y_2).sum(-1)

  def add(state, a, b, k, v, mask):
    dq_2, dk_2, dv_2 = state
    score = _einsum("bjGtA,bjTA->bjGtT", q_2[a], k)
    weight = jnp.where(mask, jnp.exp(jnp.where(mask, score - log_2[a][..., None], 0)), 0)
    dweight = _einsum("bjGtA,bjTA->bjGtT", dy_2[a], v.astype(dy_2.dtype))
    dscore = weight * (dweight - delta_2[a][..., None])
    dq_2 = dq_2.at[a].add(_einsum("bjGtT,bjTA->bjGtA", dscore, k.astype(dscore.dtype)))
    dk_2 = dk_2.at[b].add(_einsum("bjGtT,bjGtA->bjTA", dscore, q_2[a].astype(dscore.dtype)))
    dv_2 = dv_2.at[b].add(_einsum("bjGtT,bjGtA->bjTA", weight, dy_2[a]))
    return dq_2, dk_2, dv_2

  def step(state, i):
    dq_2, (k_2, v_2, theirs, dk_2, dv_2) = state
    grads = (dq_2, dk_2, dv_2)
    for a, b, at, from_, seen in _pairs(i, kept, t):
      mask = _mask(at, from_, _at(marks, a), _at(theirs, b), t, kept)
      here = functools.partial(add, a=a, b=b, k=k_2[b], v=v_2[b], mask=mask)
      grads = lax.cond(seen, here, lambda old: old, grads)
    return (grads[0], _turn((k_2, v_2, theirs, *grads[1:]), kept)), None

  zero = lambda x: jnp.zeros(x.shape, dy_2.dtype)
  start = (zero(q_2), (k_2, v_2, marks, zero(k_2), zero(v_2)))
  (dq_2, (*_, dk_2, dv_2)), _ = lax.scan(step, start, jnp.arange(kept.steps))
  if kept.steps < kept.devices:
    dk_2, dv_2 = _turn((dk_2, dv_2), kept, -kept.steps)
  return dq_2.astype(q_2.dtype), dk_2.astype(k_2.dtype), dv_2.astype(v_2.dtype), None


_ring.defvjp(_forward, _backward)
