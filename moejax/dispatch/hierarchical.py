"""Expert parallelism with slots in two steps: inside a node, then between nodes.

Paper:  Hwang et al. 2022 (Tutel), arXiv:2206.03382, the two-dimensional hierarchical all-to-all;
        Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596.
Plan:   as `all_to_all`, whose bits it gives.
Cost:   as `all_to_all` between nodes, and E * C rows more inside them; a device sends nodes - 1
        messages between nodes instead of owners - owners per node, each `inner` times as long.
Study:  configs/studies/dedup.py
"""

import dataclasses
import functools

from moejax.core import cuts, slots
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  inner: int | None = None  # owners in a node; None: of several axes of experts the last, or all

  def __post_init__(self):
    if self.inner is not None and self.inner < 1:
      raise Wrong(f"hierarchical: nodes of {self.inner} owners cannot be; use at least 1.")


def run(plan, x_ND, experts, cfg):
  """What goes to one place in each node is gathered inside the node first."""
  plan.slots()
  return cuts.run("hierarchical", functools.partial(local, cfg=cfg), plan, x_ND, experts)


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  return slots.local(plan, x_nD, experts, cut, *moves(cut, cfg))


def moves(cut, cfg):
  """There and back."""
  inner = cut.node(cfg.inner)
  inside, across = cut.inside(inner), cut.across(inner)

  def both(x_WecD):
    """Part (i, j) goes to place j of node i; what arrives lies by its source in the same way."""
    x_IJecD = x_WecD.reshape(-1, inner, *x_WecD.shape[1:])
    x_IJecD = slots.swap(x_IJecD, inside, 1, 1)
    return slots.swap(x_IJecD, across, 0, 0).reshape(x_WecD.shape)

  def there(x_EcD):
    E, c, D = x_EcD.shape
    x_WecD = both(x_EcD.reshape(cut.owners, -1, c, D))
    return x_WecD.swapaxes(0, 1).reshape(E // cut.owners, -1, D)

  def back(y_eCD):
    e, _, D = y_eCD.shape
    y_WecD = y_eCD.reshape(e, cut.owners, -1, D).swapaxes(0, 1)
    return both(y_WecD).reshape(e * cut.owners, -1, D)

  return there, back
