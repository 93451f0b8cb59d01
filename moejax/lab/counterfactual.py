"""Counterfactual routing: what would a token's loss be, had another expert been chosen for it?

Alternative u of a token: at one layer its choice with the smallest gate is replaced by the id u,
for this token alone; everything else stays free. That is exact, and one pass over the token's
sequence for each alternative of each token, so it is done for tokens drawn at random. An id that
the token has among its other choices is no alternative. The router weighs the changed choices, as
it would have had it made them; with gates="kept", u takes over the gate instead.

  own      loss of the token's own prediction; later tokens of the sequence change too, by `later`
  regret   own loss of the router's choice minus that of the best alternative: what an oracle that
           knows the next token would gain. The best is taken in hindsight, so it is never negative.
  captured the part of the way from a random alternative (0) to the oracle (1) that the router goes
  value    of an expert: mean loss of all tokens when its choices at the layer are left empty, minus
           the free loss
  cheap    the same alternatives taken by all tokens of a sequence at once, in one pass for all of
           them; `cheap_error` is how far its changes of the loss are from the exact ones
"""

import json
import pathlib
import typing

import numpy as np

from moejax.core import plugin, runs
from moejax.core.plugin import Wrong
from moejax.lab import plain, scoring
from moejax.layers import moe
from moejax.train import metrics, restore, tracing

FILE = "counterfactual.json"
COLUMNS = ("loss", "oracle", "regret", "random", "captured", "best_share", "rank", "cheap_error")


class Choices(typing.NamedTuple):
  """What the router of the layer did by itself, and how to change it."""

  score: typing.Callable
  batch: dict
  index: int  # of the layer
  shape: tuple  # of what is forced in one row: [T, L, K]
  expert_RTK: np.ndarray
  gate_RTK: np.ndarray
  weak_RT: np.ndarray  # which of the K is replaced
  loss_RT: np.ndarray
  valid_RT: np.ndarray
  kept: bool  # whether an alternative takes over the gate

  def losses(self, row: int, cases) -> np.ndarray:
    """[cases, T]: the loss of one row under each case's ids [T, K] of the layer, -2: free."""
    forced = np.full((len(cases), *self.shape), -2, np.int32)
    forced[:, :, self.index, : self.expert_RTK.shape[2]] = cases
    batch = {
      name: np.repeat(rows[row : row + 1], len(cases), 0) for name, rows in self.batch.items()
    }
    batch["forced_BTLK"] = forced
    if self.kept:
      gates = np.zeros(forced.shape, np.float32)
      gates[:, :, self.index, : self.expert_RTK.shape[2]] = self.gate_RTK[row]
      batch["gate_BTLK"] = gates
    return self.score(batch)["loss_BT"].astype(np.float64)


def measure(run, layer: str, tokens: int = 64, gates="router", seed: int = 0, score=None) -> dict:
  """Regret of `tokens` drawn held-out tokens, and the value of every expert, at one layer.

  `score` is the scoring.Score of the run, where there is one already: it need not compile again.
  """
  U = _ids(run, layer)
  if gates not in ("router", "kept"):
    raise Wrong(f"counterfactual: gates is {gates!r}; use 'router' or 'kept'.")
  if tokens < 1:
    raise Wrong(f"counterfactual: {tokens} tokens are none; ask for at least 1.")
  free = _free(run, layer, U, gates == "kept", score or scoring.Score(run))
  can_RT = free.valid_RT & (free.expert_RTK >= 0).any(2)
  places = np.argwhere(can_RT)
  some = np.random.default_rng(seed).permutation(len(places))[:tokens]
  places = places[np.sort(some)]
  if not len(places):
    raise Wrong("counterfactual: no held-out token has a choice to replace; give more text.")
  own_PU, later_PU = exact(free, places, U)
  cheap_PU = cheap(free, places, U)
  found = summary(own_PU, later_PU, cheap_PU, _chosen(free, places))
  load_U = np.bincount(free.expert_RTK[free.expert_RTK >= 0], minlength=U)
  experts = {"load": load_U / load_U.sum(), "value": value(free, U)}
  experts = {name: [round(float(x), 6) for x in numbers] for name, numbers in experts.items()}
  about = {"step": run.step, "tokens": len(places), "gates": gates, "seed": seed}
  return {**about, **found, "experts": experts}


def exact(free: Choices, places, U: int):
  """(own loss, sum of the later losses) [P, U], one token changed at a time; nan: not one."""
  own_PU, later_PU = np.full((2, len(places), U), np.nan)
  for p, (row, t) in enumerate(places):
    cases = np.full((U, *free.expert_RTK.shape[1:]), -2, np.int32)
    cases[:, t] = alternatives(free.expert_RTK[row, t], free.weak_RT[row, t], U)
    loss_UT = free.losses(row, cases)
    there_U = cases[:, t, 0] != -2
    after_T = free.valid_RT[row] & (np.arange(len(free.valid_RT[row])) > t)
    own_PU[p, there_U] = loss_UT[there_U, t]
    later_PU[p, there_U] = loss_UT[there_U] @ after_T
  return own_PU, later_PU


def cheap(free: Choices, places, U: int):
  """The own losses when all tokens of a row take the same alternative at once."""
  out_PU = np.full((len(places), U), np.nan)
  for row in np.unique(places[:, 0]):
    each = zip(free.expert_RTK[row], free.weak_RT[row], strict=True)
    cases = np.stack([alternatives(expert_K, weak, U) for expert_K, weak in each], axis=1)
    loss_UT = np.where(cases[..., 0] == -2, np.nan, free.losses(row, cases))
    mine = places[:, 0] == row
    out_PU[mine] = loss_UT[:, places[mine, 1]].T
  return out_PU


def value(free: Choices, U: int) -> np.ndarray:
  """Mean loss without an id minus the free one, by id, over all tokens of the batch."""
  total_U = np.zeros(U)
  for row, expert_TK in enumerate(free.expert_RTK):
    cases = np.where(expert_TK[None] == np.arange(U)[:, None, None], -1, expert_TK[None])
    change_UT = free.losses(row, cases) - free.loss_RT[row][None]
    total_U += change_UT @ free.valid_RT[row]
  return total_U / free.valid_RT.sum()


def alternatives(expert_K, weak, U: int) -> np.ndarray:
  """[U, K]: the choices with each id in the place of the weakest; all -2 where it is there already.

  A token without any choice, as padding, has no alternative.

  >>> alternatives(np.array([2, 0]), 1, 3).tolist()
  [[2, 0], [2, 1], [-2, -2]]
  """
  out_UK = np.repeat(expert_K[None].astype(np.int32), U, axis=0)
  out_UK[:, weak] = np.arange(U)
  others = np.delete(expert_K, weak)
  out_UK[others[others >= 0]] = -2
  out_UK[:] = np.where((expert_K >= 0).any(), out_UK, -2)
  return out_UK


def summary(own_PU, later_PU, cheap_PU, chosen_P) -> dict:
  """The numbers of a layer; losses in nats per token."""
  at = lambda a_PU, u_P: np.take_along_axis(a_PU, u_P[:, None], axis=1)[:, 0]
  base_P, best_P = at(own_PU, chosen_P), np.nanargmin(own_PU, axis=1)
  regret_P = base_P - at(own_PU, best_P)
  others_PU = own_PU.copy()
  others_PU[np.arange(len(own_PU)), chosen_P] = np.nan
  count_P = np.isfinite(others_PU).sum(1)
  random_P = np.where(count_P > 0, np.nansum(others_PU, axis=1) / np.maximum(count_P, 1), base_P)
  change_PU, cheap_PU = own_PU - base_P[:, None], cheap_PU - at(cheap_PU, chosen_P)[:, None]
  later_P = at(later_PU, best_P) - at(later_PU, chosen_P)
  loss, oracle, random = base_P.mean(), base_P.mean() - regret_P.mean(), random_P.mean()
  numbers = {
    "loss": loss, "oracle": oracle, "random": random, "regret": regret_P.mean(),
    "regret_error": regret_P.std() / np.sqrt(len(regret_P)),
    "captured": (random - loss) / (random - oracle) if random > oracle else 1.0,
    "best_share": (regret_P == 0).mean(), "rank": 1 + (own_PU < base_P[:, None]).sum(1).mean(),
    "alternatives": 1 + count_P.mean(), "later": later_P.mean(),
    "cheap_error": np.nanmean(np.abs(cheap_PU - change_PU)),
    "cheap_agrees": (np.nanargmin(cheap_PU, axis=1) == best_P).mean(),
  }  # fmt: skip
  found: dict = {name: float(number) for name, number in numbers.items()}
  return {**found, "regrets": [round(float(x), 6) for x in np.sort(regret_P)[::-1]]}


def from_run(workdir, layers=(), tokens: int = 64, gates: str = "router", seed=0, step=None) -> str:
  """Measures layers of a run, all with a router unless some are named; writes FILE, and tables."""
  run, file = restore.load(workdir, step), pathlib.Path(workdir) / FILE
  layers = layers or [name for name, _ in metrics.moe_layers(run.cfg.model)]
  score = scoring.Score(run)
  found = {layer: measure(run, layer, tokens, gates, seed, score) for layer in layers}
  try:
    before = json.loads(file.read_text())["layers"]
  except (OSError, ValueError, KeyError):  # there is none, or none that can be read
    before = {}
  file.write_text(json.dumps({"layers": {**before, **found}}, indent=1) + "\n")
  rows = [[name, *(one[column] for column in COLUMNS)] for name, one in found.items()]
  parts = [plain.table(["layer", *COLUMNS], rows)]
  for name, one in found.items():
    by_id = zip(one["experts"]["load"], one["experts"]["value"], strict=True)
    lines = [[str(u), load, value] for u, (load, value) in enumerate(by_id)]
    parts.append(f"{name}\n" + plain.table(["expert", "load", "value"], lines))
  return "\n\n".join([*parts, str(file)])


def _free(run, layer: str, U: int, kept: bool, score) -> Choices:
  """The first held-out batch, in parts of as many rows as there are alternatives."""
  batch = scoring.batch_at(run, "validation", 0)
  R = len(batch["token_BT"])
  widest, T, parts = score.widest(batch), run.cfg.data.seq_len, []
  for first in range(0, R, U):
    rows = np.arange(first, first + U) % R  # the last part begins again, to be as long
    part = {name: a[rows] for name, a in batch.items()}
    part["forced_BTLK"] = scoring.free(run, U, widest)
    if kept:
      part["gate_BTLK"] = np.zeros(part["forced_BTLK"].shape, np.float32)
    found = score(part)
    by_row = {tap: a.reshape(U, T, *a.shape[1:]) for tap, a in found["layers"][layer].items()}
    parts.append({**by_row, "loss": found["loss_BT"], "valid": found["valid_BT"]})
  whole = {name: np.concatenate([part[name] for part in parts])[:R] for name in parts[0]}
  gate_RTK = np.where(whole["expert_NK"] < 0, np.inf, whole["gate_NK"])
  index, shape = int(layer.removeprefix("layer_")), (T, len(run.cfg.model.layers), widest)
  return Choices(
    score, batch, index, shape, whole["expert_NK"], whole["gate_NK"], gate_RTK.argmin(2),
    whole["loss"].astype(np.float64), whole["valid"].astype(bool), kept
  )  # fmt: skip


def _chosen(free: Choices, places) -> np.ndarray:
  """The id that alternatives replace."""
  row_P, t_P = places.T
  return free.expert_RTK[row_P, t_P, free.weak_RT[row_P, t_P]]


def _ids(run, layer: str) -> int:
  """How many ids the router of a layer chooses from; refuses what cannot be asked."""
  known = [name for name, _ in metrics.moe_layers(run.cfg.model)]
  if layer not in known:
    raise Wrong(f"counterfactual: no router is called {layer!r}. {plugin.hint(layer, known)}")
  for number, cfg in enumerate(run.cfg.model.layers):
    for _, part in runs.sections(cfg):
      if isinstance(part, moe.Config) and part.groups is not None:
        raise Wrong(
          f"counterfactual: model.moe.groups is {part.groups} in layer {number}, so tokens of"
          " several sequences compete and none changes alone; it must be None, one per sequence."
        )
      if isinstance(part, moe.Config) and hasattr(plugin.module(part.router), "choose"):
        raise Wrong(
          f"counterfactual: in layer {number} experts choose by {plugin.stem(part.router)!r}, so a"
          " token cannot change its choice alone; ask of a run whose router is of the kind of"
          " 'topk'."
        )
  shapes = {layer: {"expert_NK": np.zeros((0, 0))} for layer in known}
  return tracing.sizes(run.cfg.model, shapes)[layer]["U"]
