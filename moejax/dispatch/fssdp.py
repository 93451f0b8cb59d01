"""Fully sharded sparse data parallelism: the hottest experts come to the tokens, the others stay.

Paper:  Qing et al. 2025 (Hecate), arXiv:2502.02581.
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   the weights of `hot` experts to every device that shares the experts, and their gradients
        back: 2 * hot * 3 * D * F numbers, in one sum each. Tokens of the other experts travel as in
        `all_gather`, so that a device whose experts are in demand has no more to do than others.
Study:  configs/studies/fssdp.py

The hot experts of a step are those with the most rows in it, which the devices find together after
the router has chosen; Hecate predicts them from earlier steps, to hide their transfer behind other
work. Nothing but the choice of who computes what depends on them: values and gradients are those of
any other dispatch. With hot = 0 it is expert parallelism, with hot = E data parallelism whose
experts are sharded (FSDP). Under model.remat 'full' the copies are not kept for the backward pass.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from moejax.core import cuts
from moejax.core.plugin import Wrong
from moejax.core.rows import Rows
from pallas_kernels import routing

BUFFER = "fssdp"  # the name of the copies, for a policy of rematerialisation


@dataclasses.dataclass(frozen=True)
class Config:
  hot: int = 2  # experts of the layer that are copied in a step

  def __post_init__(self):
    if self.hot < 0:
      raise Wrong(f"fssdp: hot is {self.hot}; it must be at least 0.")


def run(plan, x_ND, experts, cfg):
  """Count, copy the hot ones, compute them here, gather the tokens of the others."""
  if cfg.hot > plan.num_experts:
    raise Wrong(
      f"fssdp: {cfg.hot} hot experts of {plan.num_experts} cannot be; lower model.moe.dispatch.hot."
    )
  return cuts.run("fssdp", functools.partial(local, cfg=cfg), cuts.whole(plan), x_ND, experts)


def bytes_moved(hot: int, width: int, hidden: int, size: int = 4) -> int:
  """Bytes of the copies of a layer in one direction, on each device.

  >>> bytes_moved(2, 4, 8)
  768
  """
  return hot * 3 * width * hidden * size


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  E, rows = plan.num_experts, plan.rows()
  expert_M, token_M, gate_M = rows
  size_E = jnp.bincount(expert_M, length=E + 1)[:E]  # E: rows of nobody
  total_E = lax.psum(size_E, cut.tokens) if cut.tokens else size_E
  hot_R = lax.top_k(total_E, cfg.hot)[1]  # equal ones: the lowest id
  place_E = jnp.full((E + 1,), cfg.hot).at[hot_R].set(jnp.arange(cfg.hot))
  is_hot_M = place_E[expert_M] < cfg.hot
  cold = (expert_M, jnp.where(is_hot_M, -1, token_M), gate_M)
  y_nD = _gathered(plan, x_nD, cold, experts, cut)
  if cfg.hot:
    here = experts._replace(params=copies(experts.params, hot_R, cut))
    expert_M = jnp.where(is_hot_M, place_E[expert_M], cfg.hot)
    order_M, place_M, size_R = routing.sort(expert_M, cfg.hot)
    row_NK, hot_M = cuts.table(plan, place_M, is_hot_M), jnp.where(is_hot_M, token_M, -1)
    mine = Rows(x_nD, hot_M[order_M], gate_M[order_M], row_NK)
    y_nD = y_nD + here.to_tokens(mine, size_R).astype(y_nD.dtype)
  return y_nD, {"copied": jnp.sum(is_hot_M & (token_M >= 0)).astype(jnp.float32)}


def copies(params: dict, hot_R: jax.Array, cut) -> dict:
  """The parameters of the hot experts, on every device: one owner adds each, the others zeros.

  Its transpose sums the gradients of all copies at the owner.
  """
  e = len(jax.tree.leaves(params)[0])
  at_R = hot_R - e * cut.owner() if cut.expert else hot_R
  is_mine_R = (at_R >= 0) & (at_R < e)

  def one(leaf):
    mine = jnp.where(is_mine_R[:, None, None], leaf[jnp.clip(at_R, 0, e - 1)], 0)
    return checkpoint_name(lax.psum(mine, cut.expert) if cut.expert else mine, BUFFER)

  return jax.tree.map(one, params)


def _gathered(plan, x_nD, rows, experts, cut):
  """What their owners add to all tokens, as dispatch/all_gather.py has it."""
  together = lambda a: cut.gathered(a).reshape(-1, *a.shape[1:])
  expert_M, token_M, gate_M = rows
  source_M = jnp.repeat(jnp.arange(cut.owners), len(token_M))
  token_M = together(token_M)
  token_M = jnp.where(token_M < 0, -1, token_M + len(x_nD) * source_M)
  rows = (together(expert_M), token_M, together(gate_M))
  y_ND = cuts.own(plan, together(x_nD), rows, experts, cut)
  return lax.psum_scatter(y_ND, cut.expert, tiled=True) if cut.expert else y_ND
