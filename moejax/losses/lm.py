"""Cross entropy of a language model, from the last hidden state to the loss.

The head and the loss are one function, so that the logits of a whole batch need never exist: rows
go through it in chunks, and while a chunk's logits are there its gradients are taken too. On a mesh
every device does so with its own rows and its own part of the vocabulary.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax

from moejax.core import axes
from pallas_kernels import target

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
  if not target.is_cut():
    return _all(x_ND, head_VD, target_N, weight_N, chunk_bytes)
  mesh = jax.sharding.get_abstract_mesh()
  by_token = axes.spec("x_N", target_N.shape, {"N": axes.TOKENS}, mesh)
  cut = axes.spec("head_VD", head_VD.shape, axes.roles()["attention"], mesh)
  over_V, over_D = (on or () for on in cut)

  def local(x_nD, head_vd, target_n, weight_n):
    head_vD = lax.all_gather(head_vd, over_D, axis=1, tiled=True) if over_D else head_vd
    total, loss_n = _all(x_nD, head_vD, target_n, weight_n, chunk_bytes, over_V)
    return total[None], loss_n

  specs = {"in_specs": (by_token, cut, by_token, by_token), "out_specs": (by_token, by_token)}
  total_S, loss_N = jax.shard_map(local, **specs, check_vma=False)(
    x_ND, head_VD, target_N, weight_N
  )
  return total_S.sum(), loss_N


def _all(x_ND, head_VD, target_N, weight_N, chunk_bytes, over=()) -> typing.Any:
  """All rows in chunks; the vocabulary may be cut over the axes `over` of a mesh."""
  chunk = max(1, chunk_bytes // (4 * len(head_VD)))
  return _chunked(x_ND, head_VD, target_N, weight_N, min(chunk, len(x_ND)), over)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _chunked(x_ND, head_VD, target_N, weight_N, chunk, over):
  def one(total, part):
    x_nD, target_n, weight_n = part
    loss_n = _losses(_logits(x_nD, head_VD), target_n, over)[0]
    return total + jnp.sum(loss_n * weight_n), loss_n

  parts = _cut((x_ND, target_N, weight_N), chunk)
  total, loss_CN = lax.scan(one, jnp.zeros((), _wide(x_ND)), parts)
  return total, loss_CN.ravel()[: len(x_ND)]


def _forward(x_ND, head_VD, target_N, weight_N, chunk, over):
  """The gradients come along with the loss: backward only scales them."""

  def one(sums, part):
    (total, dhead_VD), (x_nD, target_n, weight_n) = sums, part
    loss_n, prob_nV = _losses(_logits(x_nD, head_VD), target_n, over)
    chosen_nV = jnp.arange(len(head_VD))[None] == _here(target_n, len(head_VD), over)[:, None]
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


def _backward(chunk, over, saved, d):
  (dx_ND, dhead_VD, loss_N), (dtotal, _) = saved, d
  dtotal = lax.psum(dtotal, over)  # devices that share rows have equal parts of it
  scaled = lambda a: (dtotal * a).astype(a.dtype)
  return scaled(dx_ND), scaled(dhead_VD), None, dtotal * loss_N


_chunked.defvjp(_forward, _backward)


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _logits(x_ND, head_VD):
  return jnp.einsum("ND,VD->NV", x_ND, head_VD, preferred_element_type=_wide(x_ND))


def _losses(logit_NV, target_N, over):
  """(cross entropy of every row, its softmax)."""
  shifted_NV = logit_NV - lax.pmax(logit_NV.max(1, keepdims=True), over)
  prob_NV = jnp.exp(shifted_NV)
  total_N1 = lax.psum(prob_NV.sum(1, keepdims=True), over)
  here_N1 = _here(target_N, logit_NV.shape[1], over)[:, None]
  at_N1 = jnp.take_along_axis(shifted_NV, here_N1, axis=1, mode="fill", fill_value=0)
  at_N = lax.psum(at_N1[:, 0], over)
  return jnp.log(total_N1[:, 0]) - at_N, prob_NV / total_N1


def _here(target_N, V, over):
  """The places of targets in this device's part of the vocabulary; V where they are in another."""
  if not over:
    return target_N
  here_N = target_N - V * lax.axis_index(over)
  return jnp.where((here_N >= 0) & (here_N < V), here_N, V)


def _cut(arrays, chunk):
  """[N, ...] -> [chunks, chunk, ...]; rows added to fill the last one have weight zero."""
  missing = -len(arrays[0]) % chunk
  fill = lambda a: jnp.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) if missing else a
  return jax.tree.map(lambda a: fill(a).reshape(-1, chunk, *a.shape[1:]), arrays)
