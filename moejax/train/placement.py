"""Which expert is stored in which slot: by load, with copies of the busiest, moved between steps.

Paper:  DeepSeek 2025 (EPLB), for copies and packing; Pangu team 2025 (Pangu Ultra MoE),
        arXiv:2505.04519, for experts that move in training with their moments.

A layer with `stored` S >= E slots reads the table slot_ER, an input array: token n goes to copy
n mod R of its expert. So a new table needs no compilation: `moved` takes parameters, moments and
averages along, one gather per leaf. Copies of an expert stay equal: `summed` adds their gradients
up in the first of them and leaves zeros in the others, so that norms count an expert once, and
`copied` writes what the optimiser made of it over all of them. Loads and tables here are those of
one layer; slots are cut over owners in order, S / owners each.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import axes
from moejax.core.plugin import Wrong


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
  held = [[] for _ in range(owners)]
  for part, e in parts:  # to the owner with the least, who has none of it where that can be
    free = [o for o in range(owners) if len(held[o]) < room]
    weigh = lambda o, e=e: (any(e == other for _, other in held[o]), -sum(p for p, _ in held[o]))
    held[min(free, key=weigh)].append((part, e))
  slots = [[] for _ in range(E)]
  for o in range(owners):
    for i, (_, e) in enumerate(held[o]):
      slots[e].append(o * room + i)
  return np.array([[mine[r % len(mine)] for r in range(copies)] for mine in slots], np.int32)


def straggler(load_E, slot_ER, owners: int, stored: int) -> float:
  """The load of the busiest owner over the mean.

  >>> straggler([6.0, 1.0, 1.0], [[0, 2], [1, 1], [3, 3]], owners=2, stored=4)
  1.0
  """
  load_E, slot_ER = np.asarray(load_E, np.float64), np.asarray(slot_ER)
  load_S = np.zeros(stored)
  np.add.at(load_S, slot_ER, load_E[:, None] / slot_ER.shape[1])
  return float(load_S.reshape(owners, -1).sum(1).max() / (load_S.sum() / owners))


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
    S, E = len(g_S), len(slot_ER)
    g_E = jax.ops.segment_sum(g_S, experts_of(slot_ER, S), E + 1)[:E]
    return jnp.zeros_like(g_S).at[slot_ER[:, 0]].set(g_E)

  return _stored(one, grads)


def copied(tree: dict, slot_ER: jax.Array) -> dict:
  """Parameters, moments or an average of a layer, with every copy as the first one is."""
  return moved(tree, slot_ER, slot_ER)


def moved(tree: dict, old_ER: jax.Array, new_ER: jax.Array) -> dict:
  """The same experts in the slots of another table; a slot that nobody uses keeps what it has."""

  def one(leaf_S):
    S, E = len(leaf_S), len(old_ER)
    expert_S = experts_of(new_ER, S)
    from_S = jnp.where(expert_S < E, old_ER[jnp.minimum(expert_S, E - 1), 0], jnp.arange(S))
    return leaf_S[from_S]

  return _stored(one, tree)


def _stored(one, tree):
  """The leaves that lie by slot; E is their first letter."""
  mine = lambda path: axes.letters(path[-1].key).startswith("E")
  act = lambda path, leaf: one(leaf) if mine(path) else leaf
  return jax.tree_util.tree_map_with_path(act, tree)
