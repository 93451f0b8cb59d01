"""Expert parallelism in a ring: tokens go round past all experts and collect what each adds.

Paper:  Liu et al. 2023 (Ring Attention), arXiv:2310.01889, for the way round; for experts there is
        none: it is `all_gather` with the tokens of one device at a time.
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   as `all_gather`, owners * n rows and results sent to a neighbour, in as many steps as there
        are owners, of which each needs room for the tokens of one device alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from moejax.core import cuts


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """As many steps as there are owners; then the tokens are at home again."""
  return cuts.run("ring", functools.partial(local, cfg=cfg), cuts.whole(plan), x_ND, experts)


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  neighbours = [(i, (i + 1) % cut.owners) for i in range(cut.owners)]

  def step(visiting, _):
    (x_nD, rows), y_nD = visiting
    y_nD += cuts.own(plan, x_nD, rows, experts, cut).astype(y_nD.dtype)
    on = lambda a: lax.ppermute(a, cut.expert, neighbours) if cut.expert else a
    return jax.tree.map(on, ((x_nD, rows), y_nD)), None

  start = ((x_nD, plan.rows()), jnp.zeros(x_nD.shape, jnp.float32))
  (_, y_nD), _ = lax.scan(step, start, None, length=cut.owners)
  return y_nD.astype(x_nD.dtype), {}
