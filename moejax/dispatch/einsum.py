"""One-hot dispatch: tokens into slots and back by two products with tables of zeros and ones.

Paper:  Lepikhin et al. 2020, arXiv:2006.16668; mixtures as weights: Puigcerver et al. 2023,
        arXiv:2308.00951.
Plan:   with slots, or a SoftPlan.
Cost:   the tables hold N * E * C / groups numbers each and the products cost as many multiply-adds
        per D: about factor * k * N^2 / groups, so the tokens of a group should be few. For matmul
        hardware and for plans that mix tokens; otherwise `gather` does the same by index.
"""

import dataclasses

import jax.numpy as jnp

from moejax.core.rows import Rows


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Every slot is a sum over the tokens of its group, every token one over its group's slots."""
  plan, (N, D) = plan.soft(), x_ND.shape
  _, E, C = plan.dispatch_NEC.shape
  G, M = plan.groups, E * plan.groups * C
  in_groups = lambda a: a.reshape(G, N // G, *a.shape[1:])
  dispatch_GnEC = in_groups(plan.dispatch_NEC).astype(x_ND.dtype)
  x_EGCD = jnp.einsum("GnEC,GnD->EGCD", dispatch_GnEC, in_groups(x_ND))
  rows = Rows(x_EGCD.reshape(M, D), jnp.arange(M), jnp.ones(M))
  y_MD = experts.fn(experts.params, rows, jnp.full((E,), G * C))
  y_EGCD = y_MD.reshape(E, G, C, D).astype(jnp.float32)
  y_GnD = jnp.einsum("GnEC,EGCD->GnD", in_groups(plan.combine_NEC), y_EGCD)
  return y_GnD.reshape(N, D).astype(x_ND.dtype), {}
