"""Expert parallelism with slots: tokens travel to the devices of their experts and back.

Paper:  Lepikhin et al. 2020, arXiv:2006.16668.
Plan:   with slots, and groups that lie inside one token shard; without a mesh it is `gather`.
Cost:   E * C rows over all devices, each sent twice when its expert is elsewhere.
"""

import dataclasses
import functools

from moejax.core import cuts, slots


@dataclasses.dataclass(frozen=True)
class Config:
  pass


def run(plan, x_ND, experts, cfg):
  """Every device fills all experts' slots from its tokens; all_to_all swaps experts for devices."""
  plan.slots()  # a plan without any is refused by its own sentence
  return cuts.run("all_to_all", functools.partial(local, cfg=cfg), plan, x_ND, experts)


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  return slots.local(plan, x_nD, experts, cut, *moves(cut, cfg))


def moves(cut, cfg):
  """There and back."""
  there = lambda x_EcD: slots.swap(x_EcD, cut, 0, 1)
  back = lambda y_eCD: slots.swap(y_eCD, cut, 1, 0)
  return there, back
