"""Expert parallelism by gathering tokens: every device sees all tokens, and adds what it can.

Paper:  Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596, has it beside expert slicing.
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   all tokens of the devices that share experts to each of them, and their summed results back:
        2 * (owners - 1) * n rows per device, whatever the choices are. Cheap where a token has as
        many experts as there are owners, or where few rows make latency count.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax

from moejax.core import cuts


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Gather, run one's own experts, scatter the sums."""
  return cuts.run("all_gather", functools.partial(local, cfg=cfg), cuts.whole(plan), x_ND, experts)


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  together = lambda a: cut.gathered(a).reshape(-1, *a.shape[1:])
  expert_M, token_M, gate_M = plan.rows()
  source_M = jnp.repeat(jnp.arange(cut.owners), len(token_M))
  token_M = together(token_M)
  token_M = jnp.where(token_M < 0, -1, token_M + len(x_nD) * source_M)
  rows = (together(expert_M), token_M, together(gate_M))
  y_ND = cuts.own(plan, together(x_nD), rows, experts, cut)
  if cut.expert:
    y_ND = lax.psum_scatter(y_ND, cut.expert, tiled=True)
  return y_ND, {}
