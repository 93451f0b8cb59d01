"""Which expert is stored in which slot: by load, with copies of the busiest, moved between steps.

Paper:  DeepSeek 2025 (EPLB), for copies and packing; Pangu team 2025 (Pangu Ultra MoE),
        arXiv:2505.04519, for experts that move in training with their moments, where it pays.
Section: `train.placement`; None, the default, leaves experts where they are.
Study:  configs/studies/placement.py

A layer with `stored` S >= E slots reads the table slot_ER, an input array: token n goes to copy
n mod R of its expert. So a new table needs no compilation: `moved` takes parameters, moments and
averages along, one gather per leaf. Copies of an expert stay equal: `summed` adds their gradients
up in the first of them and leaves zeros in the others, so that norms count an expert once, and
`copied` writes what the optimiser made of it over all of them; both send the S - E rows of further
copies and no others. Loads and tables here are those of one layer; slots are cut over owners in
order, S / owners each. train/migration.py has what concerns a whole state.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from moejax.core import axes
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  every: int = 100  # steps from one table to the next
  copies: int = 1  # of an expert, at the most; model.moe.stored is how many slots there are
  decay: float = 0.9  # of the loads seen so far, when those of a step come in
  gain: float = 0.02  # a layer's experts move where its straggler falls by more than this
  owners: int | None = None  # who are to be equally busy; None = those of the mesh

  def __post_init__(self):
    for name in ("every", "copies", "owners"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise Wrong(f"placement: {name} is {value}; it must be at least 1.")
    if not 0 <= self.decay < 1 or self.gain < 0:
      raise Wrong(
        f"placement: decay is {self.decay} and gain is {self.gain}; decay lies in 0..1, below 1,"
        " and gain is not negative."
      )


def assigned(load_E, owners: int, stored: int, copies: int) -> np.ndarray:
  """slot_ER for a load, R = copies: the busiest get what is left over, owners fill up evenly.

  >>> assigned([6.0, 1.0, 1.0], owners=2, stored=4, copies=2).tolist()
  [[0, 2], [1, 1], [3, 3]]
  """
  load_E = np.asarray(load_E, np.float64)
  E, room = len(load_E), stored // owners
  if stored % owners or not E <= stored <= E * copies:
    raise Wrong(
      f"placement: {E} experts with up to {copies} copies cannot fill {stored} slots of {owners}"
      " owners; use a multiple of the owners, from the number of experts to that of copies."
    )
  count_E = np.ones(E, int)
  for _ in range(stored - E):
    count_E[np.argmax(np.where(count_E < copies, load_E / count_E, -1.0))] += 1
  parts = sorted((-load_E[e] / count_E[e], e) for e in range(E) for _ in range(count_E[e]))
  given = [[] for _ in range(owners)]
  for part, e in parts:  # to the owner with the least, who has none of it where that can be
    free = [o for o in range(owners) if len(given[o]) < room]
    weigh = lambda o, e=e: (any(e == other for _, other in given[o]), -sum(p for p, _ in given[o]))
    given[min(free, key=weigh)].append((part, e))
  return _table(np.array([e for of_one in given for _, e in of_one]), E, copies)


def nearest(new_ER, old_ER, owners: int, stored: int) -> np.ndarray:
  """The table `new_ER` with owners renamed, and their slots, so that the fewest experts move.

  >>> nearest([[2], [3], [0], [1]], [[0], [1], [2], [3]], owners=2, stored=4).tolist()
  [[0], [1], [2], [3]]
  """
  E, R = np.shape(new_ER)
  new_OS, old_OS = (held(slot_ER, stored).reshape(owners, -1) for slot_ER in (new_ER, old_ER))
  common = [[len({*new} & {*old} - {E}) for new in new_OS.tolist()] for old in old_OS.tolist()]
  expert_S = []
  for old, new in zip(*scipy.optimize.linear_sum_assignment(common, maximize=True), strict=True):
    coming, here = new_OS[new].tolist(), []
    for e in old_OS[old].tolist():
      here.append(e if e in coming else -1)
      if e in coming:
        coming.remove(e)
    expert_S += [coming.pop() if e < 0 else e for e in here]
  return _table(np.array(expert_S), E, R)


def renewed(load_E, old_ER, owners: int, stored: int, cfg: Config) -> np.ndarray:
  """The table for a load, near the one before; that one itself where it gains too little.

  >>> old_ER, even = np.array([[0], [1], [2], [3]]), [1.0, 1.0, 1.0, 1.0]
  >>> renewed([5.0, 3.0, 1.0, 1.0], old_ER, owners=2, stored=4, cfg=Config()).tolist()
  [[0], [3], [2], [1]]
  >>> renewed(even, old_ER, owners=2, stored=4, cfg=Config()) is old_ER
  True
  """
  new_ER = assigned(load_E, owners, stored, cfg.copies)
  new_ER = nearest(new_ER, old_ER, owners, stored)
  before, after = (straggler(load_E, slot_ER, owners, stored) for slot_ER in (old_ER, new_ER))
  return new_ER if before - after > cfg.gain else old_ER


def straggler(load_E, slot_ER, owners: int, stored: int) -> float:
  """The load of the busiest owner over the mean; 1 where there is no load.

  >>> straggler([6.0, 1.0, 1.0], [[0, 2], [1, 1], [3, 3]], owners=2, stored=4)
  1.0
  """
  load_E, slot_ER = np.asarray(load_E, np.float64), np.asarray(slot_ER)
  load_S = np.zeros(stored)
  np.add.at(load_S, slot_ER, load_E[:, None] / slot_ER.shape[1])
  mean = load_S.sum() / owners
  return float(load_S.reshape(owners, -1).sum(1).max() / mean) if mean else 1.0


def held(slot_ER, stored: int) -> np.ndarray:
  """experts_of(slot_ER, stored), on the host.

  >>> held([[0, 2], [3, 3]], 4).tolist()
  [0, 2, 0, 1]
  """
  expert_S = np.full(stored, len(slot_ER))
  expert_S[np.asarray(slot_ER)] = np.arange(len(slot_ER))[:, None]
  return expert_S


def experts_of(slot_ER: jax.Array, stored: int) -> jax.Array:
  """The expert in each slot; E in one that nobody uses.

  >>> experts_of(jnp.array([[0, 2], [3, 3]]), 4).tolist()
  [0, 2, 0, 1]
  """
  E = len(slot_ER)
  expert_ER = jnp.broadcast_to(jnp.arange(E)[:, None], slot_ER.shape)
  return jnp.full((stored,), E).at[slot_ER].set(expert_ER)


def summed(grads: dict, slot_ER: jax.Array) -> dict:
  """Gradients of the slots of a layer, added up over copies; zeros in all copies but the first."""

  def one(g_S):
    further_X, first_X = _copies(slot_ER, len(g_S))
    part_X = g_S.at[further_X].get(mode="fill", fill_value=0)
    return g_S.at[further_X].set(0, mode="drop").at[first_X].add(part_X, mode="drop")

  return _stored(one, grads)


def copied(tree: dict, slot_ER: jax.Array) -> dict:
  """Parameters of a layer, with every copy as the first one is."""

  def one(leaf_S):
    further_X, first_X = _copies(slot_ER, len(leaf_S))
    first = leaf_S.at[first_X].get(mode="fill", fill_value=0)
    return leaf_S.at[further_X].set(first, mode="drop")

  return _stored(one, tree)


def moved(tree: dict, old_ER: jax.Array, new_ER: jax.Array) -> dict:
  """The same experts in the slots of another table; a slot that nobody uses keeps what it has."""

  def one(leaf_S):
    S, E = len(leaf_S), len(old_ER)
    expert_S = experts_of(new_ER, S)
    from_S = jnp.where(expert_S < E, old_ER[jnp.minimum(expert_S, E - 1), 0], jnp.arange(S))
    return leaf_S[from_S]

  return _stored(one, tree)


def by_slot(layer: dict) -> dict:
  """The leaves of a layer that lie by slot: its own whose first letter is E."""
  mine = lambda name, leaf: not isinstance(leaf, dict) and axes.letters(name).startswith("E")
  return {name: leaf for name, leaf in layer.items() if mine(name, leaf)}


def _table(expert_S, E: int, R: int) -> np.ndarray:
  """slot_ER of the experts in the slots; one with fewer copies than R has them in turn."""
  slots = [np.flatnonzero(expert_S == e) for e in range(E)]
  return np.array([[mine[r % len(mine)] for r in range(R)] for mine in slots], np.int32)


def _copies(slot_ER, stored: int):
  """(the slots of further copies, those of the first ones), X = S - E; S where there is none."""
  E = len(slot_ER)
  expert_S, first_E = experts_of(slot_ER, stored), slot_ER[:, 0]
  is_first_S = jnp.zeros(stored, bool).at[first_E].set(True)
  is_further_S = (expert_S < E) & ~is_first_S
  further_X = jnp.nonzero(is_further_S, size=stored - E, fill_value=stored)[0]
  expert_X = expert_S.at[further_X].get(mode="fill", fill_value=E)
  return further_X, first_E.at[expert_X].get(mode="fill", fill_value=stored)


def _stored(one, tree):
  """A layer with one(leaf) for the leaves that lie by slot."""
  mine = by_slot(tree)
  return {name: one(leaf) if name in mine else leaf for name, leaf in tree.items()}
