"""Expert parallelism without slots: each device sends every other the rows of its experts.

Paper:  Gale et al. 2022 (MegaBlocks), arXiv:2211.15841, for dropless experts; the exchange is XLA's
        ragged all-to-all (core/exchange.py).
Plan:   any in which tokens or experts choose; nothing is dropped.
Cost:   one row per used choice, sent twice when its expert is elsewhere, and a table of counts. A
        device has room for `room` times the mean number of rows, or for the smallest of several
        such rooms that is enough. If more come anywhere, that step runs a program with room for
        all rows of all devices; `spilled` counts it. `python -m moejax room` finds rooms in traces.
Study:  configs/studies/dedup.py
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moejax.core import cuts, dropless
from moejax.core.plan import TokenPlan
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  room: float | tuple = 2.0  # several: a ladder of compiled sizes

  def __post_init__(self):
    rooms = self.rooms()
    if not rooms or min(rooms) < 1 or sorted(set(rooms)) != list(rooms):
      raise Wrong(
        f"ragged: room for {self.room} of the mean rows cannot be; use numbers from 1 upwards, each"
        " larger than the one before."
      )

  def rooms(self) -> tuple:
    """The ladder, which may have one rung."""
    return self.room if isinstance(self.room, tuple) else (self.room,)


def run(plan, x_ND, experts, cfg):
  """Sort by expert, send, run, send back, add up."""
  return cuts.run("ragged", functools.partial(local, cfg=cfg), cuts.whole(plan), x_ND, experts)


def local(plan, x_nD, experts, cut, cfg):
  """On one device."""
  rows, count_WE = dropless.ready(plan, x_nD, cut)
  M, W = len(rows.token_M), cut.owners
  sent_WW = count_WE.reshape(W, W, -1).sum(2)
  most = W * (M if isinstance(plan, TokenPlan) else M // W)  # all rows of all devices
  sizes = dropless.rungs(cfg.rooms(), M, most)
  through = lambda R, x_MD: dropless.through(x_MD, count_WE, R, experts, cut)
  at = cut.highest(dropless.rung(sent_WW.sum(0).max(), sizes))
  y_MD = jax.lax.switch(at, [functools.partial(through, R) for R in sizes], rows.x_MD())
  away = sent_WW[cut.owner()].sum() - sent_WW[cut.owner(), cut.owner()]
  spilled = (at == len(sizes) - 1) & (len(sizes) > 1)
  once = spilled & (jax.lax.axis_index(cut.tokens) == 0)
  sums = {"moved": away, "spilled": once, "received_max": sent_WW[:, cut.owner()].sum()}
  return rows.combine(y_MD), {name: value.astype(jnp.float32) for name, value in sums.items()}
