"""Expert parallelism whose layout follows the load: r devices share the work on an expert.

Paper:  Hwang et al. 2022 (Tutel), arXiv:2206.03382: one layout of the weights, of which every r is
        a way to compute, so that r changes from step to step and no weight moves. With r = 1 on
        a mesh whose `tensor` devices have the same tokens it is the parallelism-coordinated
        communication, and with r = n the expert slicing, of Rajbhandari et al. 2022
        (DeepSpeed-MoE), arXiv:2201.05596.
Plan:   as `all_to_all`; groups must lie inside one of all devices' parts of the tokens.
Cost:   experts lie over `expert`, their hidden width over the n devices of `tensor`, and tokens
        over both. r = 1 .. n, a divisor of n: each device gathers its experts' width from n / r
        neighbours and sends its slots r times: 2 r E C D numbers sent, weights / (owners r)
        gathered. r = 0: it gathers all weights and sends nothing.
Differs from the paper: with r < n a slot goes to the r devices of its own place among n / r
        neighbours, instead of being spread over all: as many bytes, fewer and larger messages.
Study:  configs/studies/adaptive.py
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from moejax.core import axes, cuts, slots
from moejax.core.plugin import Wrong

SPREAD = True  # tokens are cut over the axes of F as well


@dataclasses.dataclass(frozen=True)
class Config:
  r: int = 1

  def __post_init__(self):
    if self.r < 0:
      raise Wrong(f"adaptive: {self.r} devices cannot share an expert; use r of 0 or more.")


def run(plan, x_ND, experts, cfg):
  """Gather what is missing of the weights, send the slots, run, send back, add up."""
  plan.slots()
  local_ = functools.partial(local, cfg=cfg)
  return cuts.run("adaptive", local_, plan, x_ND, experts, spread=SPREAD)


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  experts = gathered(experts, cut, cfg)
  return slots.local(plan, x_nD, experts, cut, *moves(cut, cfg))


def gathered(experts, cut, cfg):
  """The experts with so much of their width as r devices share; with r = 0 all of all."""
  r, n = _shared(cut, cfg), cut.slices
  if r == 0:
    everyone = cuts.Cut(cut.tokens, cut.expert + cut.slicing, cut.shards, *[cut.owners * n] * 2)
    together = functools.partial(_whole, everyone=everyone, cut=cut)
  else:
    near = cuts.Cut(cut.tokens, cut.slicing, cut.shards, n, n).inside(n // r)
    together = functools.partial(_wider, near=near)
  return experts._replace(params=jax.tree_util.tree_map_with_path(together, experts.params))


def _wider(path, leaf, near):
  """The slices of the width that neighbours have, put together."""
  axis = axes.letters(path[-1].key).find("F")
  if not near.expert or axis < 0:
    return leaf
  how = {"axis_index_groups": near.groups(), "axis": axis, "tiled": True}
  return lax.all_gather(leaf, near.expert, **how)


def _whole(path, leaf, everyone, cut):
  """All experts with all of their width, in one exchange."""
  letters = axes.letters(path[-1].key)
  if not everyone.expert or "F" not in letters:
    return lax.all_gather(leaf, cut.expert, axis=letters.find("E"), tiled=True)
  leaf_OS = everyone.gathered(leaf).reshape(cut.owners, cut.slices, *leaf.shape)
  at_E, at_F = (letters.find(letter) + 1 for letter in "EF")  # behind the axis of owners
  leaf_OS = jnp.moveaxis(leaf_OS, 1, at_F)
  shape = [size * (cut.slices if i == at_F - 1 else 1) for i, size in enumerate(leaf.shape)]
  leaf_O = leaf_OS.reshape(cut.owners, *shape)
  leaf_O = jnp.moveaxis(leaf_O, 0, at_E - 1)
  shape[at_E - 1] *= cut.owners
  return leaf_O.reshape(shape)


def moves(cut, cfg):
  """There and back."""
  r, n = _shared(cut, cfg), cut.slices
  if r == 0:
    return lambda x_EcD: x_EcD, lambda y_EcD: y_EcD
  among, total = cut.expert + (cut.slicing if n > 1 else ()), cut.owners * n
  peers = cuts.Cut(cut.tokens, among, cut.shards, cut.owners * r, total, n // r)
  peers = peers if peers.owners > 1 else peers._replace(expert=())

  def there(x_EcD):
    E, c, D = x_EcD.shape
    x_WecD = x_EcD.reshape(cut.owners, -1, c, D)
    x_VecD = jnp.repeat(x_WecD, r, axis=0) if r > 1 else x_WecD
    x_VecD = slots.swap(x_VecD, peers, 0, 0)
    return x_VecD.swapaxes(0, 1).reshape(E // cut.owners, -1, D)

  def back(y_eCD):
    e, _, D = y_eCD.shape
    y_VecD = y_eCD.reshape(e, peers.owners, -1, D).swapaxes(0, 1)
    y_VecD = slots.swap(y_VecD, peers, 0, 0)
    y_EcrD = y_VecD.reshape(cut.owners, r, e, -1, D)
    if r == 1:
      return y_EcrD.reshape(cut.owners * e, -1, D)
    y_WecD = y_EcrD.astype(jnp.float32).sum(1).astype(y_eCD.dtype)
    return y_WecD.reshape(cut.owners * e, -1, D)

  return there, back


def _shared(cut, cfg) -> int:
  """r, which must divide the devices that share an expert; where none do, nothing is shared."""
  if cut.slices == 1:
    return min(cfg.r, 1)
  if cfg.r and cut.slices % cfg.r:
    raise Wrong(
      f"adaptive: r={cfg.r} does not divide the {cut.slices} devices over which the width of an"
      " expert is cut; set model.moe.dispatch.r to 0 or a divisor, or take another mesh."
    )
  return cfg.r
