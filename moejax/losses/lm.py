"""Cross entropy of a language model, from the last hidden state to the loss.

The head and the loss are one function, so that the logits of a whole batch need never exist: rows
go through it in chunks, and while a chunk's logits are there its gradients are taken too. On a mesh
the plain form is used instead, which the compiler cuts over any axes.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax

CHUNK_BYTES = 64 << 20  # of float32 logits; a chunk this large runs at the speed of the whole


def cross_entropy_sum(
  x_ND, head_VD, target_N, valid_N, chunk_bytes=CHUNK_BYTES
) -> tuple[jax.Array, jax.Array]:
  """(sum of the losses weighted by valid_N, loss_N of every target); loss_N has no gradient.

  >>> x_ND, head_VD = jnp.zeros((3, 2)), jnp.ones((4, 2))
  >>> total, loss_N = cross_entropy_sum(x_ND, head_VD, jnp.array([0, 3, 1]), jnp.array([1, 1, 0]))
  >>> round(float(total), 4), loss_N.shape
  (2.7726, (3,))
  """
  weight_N = valid_N.astype(_wide(x_ND))
  if jax.sharding.get_abstract_mesh().size > 1:
    loss_N = _losses(_logits(x_ND, head_VD), target_N)[0]
    return jnp.sum(loss_N * weight_N), lax.stop_gradient(loss_N)
  chunk = max(1, chunk_bytes // (4 * len(head_VD)))
  out: typing.Any = _chunked(x_ND, head_VD, target_N, weight_N, min(chunk, len(x_ND)))
  return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(x_ND, head_VD, target_N, weight_N, chunk):
  def one(total, part):
    x_nD, target_n, weight_n = part
    loss_n = _losses(_logits(x_nD, head_VD), target_n)[0]
    return total + jnp.sum(loss_n * weight_n), loss_n

  parts = _cut((x_ND, target_N, weight_N), chunk)
  total, loss_CN = lax.scan(one, jnp.zeros((), _wide(x_ND)), parts)
  return total, loss_CN.ravel()[: len(x_ND)]


def _forward(x_ND, head_VD, target_N, weight_N, chunk):
  """The gradients come along with the loss: backward only scales them."""

  def one(sums, part):
    (total, dhead_VD), (x_nD, target_n, weight_n) = sums, part
    loss_n, prob_nV = _losses(_logits(x_nD, head_VD), target_n)
    chosen_nV = jnp.arange(len(head_VD))[None] == target_n[:, None]
    dlogit_nV = ((prob_nV - chosen_nV) * weight_n[:, None]).astype(x_ND.dtype)
    dx_nD = jnp.einsum("nV,VD->nD", dlogit_nV, head_VD)
    more_VD = jnp.einsum("nV,nD->VD", dlogit_nV, x_nD, preferred_element_type=_wide(x_ND))
    return (total + jnp.sum(loss_n * weight_n), dhead_VD + more_VD), (loss_n, dx_nD)

  parts = _cut((x_ND, target_N, weight_N), chunk)
  start = (jnp.zeros((), _wide(x_ND)), jnp.zeros(head_VD.shape, _wide(x_ND)))
  (total, dhead_VD), (loss_Cn, dx_CnD) = lax.scan(one, start, parts)
  N, D = x_ND.shape
  loss_N, dx_ND = loss_Cn.ravel()[:N], dx_CnD.reshape(-1, D)[:N]
  return (total, loss_N), (dx_ND, dhead_VD.astype(head_VD.dtype), loss_N)


def _backward(chunk, saved, d):
  (dx_ND, dhead_VD, loss_N), (dtotal, _) = saved, d
  scaled = lambda a: (dtotal * a).astype(a.dtype)
  return scaled(dx_ND), scaled(dhead_VD), None, dtotal * loss_N


_chunked.defvjp(_forward, _backward)


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _logits(x_ND, head_VD):
  return jnp.einsum("ND,VD->NV", x_ND, head_VD, preferred_element_type=_wide(x_ND))


def _losses(logit_NV, target_N):
  """(cross entropy of every row, its softmax)."""
  shifted_NV = logit_NV - lax.stop_gradient(logit_NV.max(1, keepdims=True))
  prob_NV = jnp.exp(shifted_NV)
  total_N1 = prob_NV.sum(1, keepdims=True)
  at_N = jnp.take_along_axis(shifted_NV, target_N[:, None], axis=1)[:, 0]
  return jnp.log(total_N1[:, 0]) - at_N, prob_NV / total_N1


def _cut(arrays, chunk):
  """[N, ...] -> [chunks, chunk, ...]; rows added to fill the last one have weight zero."""
  missing = -len(arrays[0]) % chunk
  fill = lambda a: jnp.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) if missing else a
  return jax.tree.map(lambda a: fill(a).reshape(-1, chunk, *a.shape[1:]), arrays)
