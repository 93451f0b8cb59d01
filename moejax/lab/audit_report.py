"""`python -m moejax audit`: cells one after another, as a table, a page and a file of numbers.

With --config and a mesh it audits that run and what is around it; with --config alone, that run on
the grid of meshes; with neither, a tiny model on the grid, on eight virtual CPU devices.
"""

import contextlib
import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from moejax.core import config, flags
from moejax.core.plugin import Failed, Wrong
from moejax.data import text
from moejax.lab import audit, audit_grid
from moejax.lab.audit import Leaf, Row
from moejax.train import loop
from moejax.train import mesh as meshes

HEAD = ("cell", "loss", "worst gradient", "ratio", "statistics", "state", "other choices", "")


def run(words: list[str], out: str | None = None, numbers: str | None = None, only="") -> str:
  """What the verb does: `words` are of --config, `out` is a page, `numbers` a JSON file.

  `only` keeps the cells whose title has this text.
  """
  given = flags.parse(words) if words else None
  mesh = given.get("mesh") if given else ""
  meshed = bool(mesh)
  jax.config.update("jax_num_cpu_devices", math.prod(meshes.parse(mesh or "data:8").values()))
  section, batch = (audit_grid.RUN, drawn(audit_grid.RUN)) if given is None else _of_run(given)
  cells = audit_grid.around(section) if meshed else audit_grid.grid(own=given is None)
  cells = [cell for cell in cells if only in audit_grid.title(cell)]
  if not cells:
    raise Wrong(f"audit: no cell has {only!r} in its title; leave out --only to see all of them.")
  follow = lambda rows: track(rows, "cells", len(cells), console=Console(stderr=True))
  rows = list(follow(audit.run(section, cells, batch)))
  if jax.process_index() == 0:
    Console().print(table(rows))
    if meshed and rows[0].gradients:
      Console().print(parameters(rows[0]))
    for path, content in ((out, page(rows)), (numbers, json.dumps([plain(r) for r in rows]))):
      if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(f"{content}\n", encoding="utf-8")
  return verdict(rows)


def verdict(rows: list[Row]) -> str:
  """One line; fails where a cell misses, refuses where none could run."""
  ran = [row for row in rows if not row.refused]
  missed = [row for row in ran if row.misses]
  if missed:
    name = lambda row: f"{audit_grid.title(row.cell)} ({row.misses[0].name})"
    raise Failed(
      f"audit: {len(missed)} of {len(ran)} cells differ from one device:"
      f" {'; '.join(map(name, missed))}."
    )
  if not ran:
    raise Wrong(f"audit: every cell was refused; the first one: {rows[0].refused}")
  return f"{len(ran)} cells agree with one device, {len(rows) - len(ran)} were refused"


def drawn(section: dict) -> dict:
  """A batch of drawn tokens: two documents in a row, and padding in some."""
  draw, vocab = np.random.default_rng(0), section["model"]["vocab"]
  B, T = section["train"]["batch_size"], section["data"]["seq_len"]
  segment_BT = np.ones((B, T + 1), np.int32)
  segment_BT[:, T // 2 + 1 :] = 2
  segment_BT[::3, T - 3 :] = 0
  token_BT = draw.integers(0, vocab, (B, T + 1)).astype(np.int32)
  return {"token_BT": token_BT, "segment_BT": segment_BT, "label_BT": np.zeros_like(token_BT)}


def _of_run(given: dict) -> tuple[dict, dict]:
  """(the config written out, its first batch) of a run."""
  cfg = config.resolve(given)
  corpus = text.open(cfg.data, cfg.train.seed)
  cfg = dataclasses.replace(cfg, model=loop.sized(cfg.model, corpus.tokenizer))
  with contextlib.closing(corpus.batches("train", cfg.train.batch_size)) as batches:
    batch = next(batches)
  return config.dump(cfg), {name: np.asarray(array) for name, array in batch.items()}


def _worst(leaves: list[Leaf]) -> Leaf:
  return max(leaves, key=lambda leaf: leaf.error, default=Leaf("none", 0.0, 0.0, 1.0))


def _line(row: Row) -> list[str]:
  """A row of the table."""
  title = audit_grid.title(row.cell)
  if row.refused:
    return [title, *[""] * 6, "refused"]
  worst = _worst(row.gradients)
  flips = f"{row.flipped} of {row.choices}" + (f", margin {row.margin:.0e}" if row.flipped else "")
  return [
    title, f"{row.loss:.0e}", f"{worst.error:.0e} {worst.name}", f"{worst.ratio:.4f}",
    f"{_worst(row.statistics).error:.0e}", f"{_worst(row.state).error:.0e}",
    flips if row.choices else "not forced", "MISS" if row.misses else "ok",
  ]  # fmt: skip


def table(rows: list[Row]) -> Table:
  """All cells, for a terminal."""
  found = Table(*HEAD, title="against one device in float64")
  for row in rows:
    found.add_row(*_line(row), style="red" if row.misses and not row.refused else None)
    if row.refused:
      found.add_row(f"  {row.refused}", style="dim")
  return found


def parameters(row: Row) -> Table:
  """Every gradient of one cell."""
  found = Table("gradient", "largest entry", "error", "ratio", title=audit_grid.title(row.cell))
  for leaf in row.gradients:
    style = "red" if leaf in row.misses else None
    numbers = (f"{leaf.size:.2e}", f"{leaf.error:.0e}", f"{leaf.ratio:.4f}")
    found.add_row(leaf.name, *numbers, style=style)
  return found


def plain(row: Row) -> dict:
  """A row as JSON has it."""
  kinds = ("gradients", "statistics", "state")
  kinds = {kind: [leaf._asdict() for leaf in getattr(row, kind)] for kind in kinds}
  return {**row._asdict(), **kinds, "title": audit_grid.title(row.cell), "ok": not row.misses}


PAGE = """# Audit

Made by `python -m moejax audit --out=docs/audit.md`. Each line is one training step of a tiny model
(a dense layer, then four MoE layers with capacity, drops, padding, a balance loss and a controller)
on up to eight virtual CPU devices, in float32, against the same step on one device, with dense
dispatch in float64 and forced to the choices of the line. Loss, gradients, statistics and router
state: the largest difference, as a part of the largest entry of its array. Ratio: the gradient's
projection on the right one, 2 where a sum is counted twice. Other choices: those that the float64
router would have made otherwise, as between two tokens that are equal, and what follows from them
in later layers. Allowed: {allowed:.0e}.

    python -m moejax audit --config=configs/quickstart.py --config.mesh=data:2,expert:4

does the same for your run on your mesh, parameter by parameter, and exits with 1 on a miss."""


def page(rows: list[Row]) -> str:
  """docs/audit.md."""
  notes = list(dict.fromkeys(row.refused for row in rows if row.refused))
  lines = [PAGE.format(allowed=audit.ALLOWED["float32"]), "", f"| {' | '.join(HEAD)} |"]
  lines.append(f"|{'---|' * len(HEAD)}")
  for row in rows:
    *cells, last = _line(row)
    last = f"refused [{notes.index(row.refused) + 1}]" if row.refused else last
    lines.append(f"| {' | '.join([*cells, last])} |")
  return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]).rstrip()
