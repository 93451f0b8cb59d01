"""A run directory as data: what was logged, its config, its machine; nothing is written.

Any state of a run can be read: one that is still going, one that was killed in the middle of a
line, one that went back to a checkpoint. What had to be left out is said in `notes`.
"""

import dataclasses
import functools
import json
import pathlib

import numpy as np

from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Run:
  path: pathlib.Path
  rows: list[dict]  # the lines of metrics.jsonl that stand
  config: dict
  environment: dict
  sample: str
  notes: list[str]

  @property
  def name(self) -> str:
    """The folder's name."""
    return self.path.resolve().name

  def kind(self, word: str) -> list[dict]:
    """The rows of one kind, in the order of their steps."""
    return sorted((r for r in self.rows if r.get("kind") == word), key=lambda r: r.get("step", 0))

  @functools.cached_property
  def train(self) -> list[dict]:
    """The logged training steps."""
    return self.kind("train")

  @functools.cached_property
  def evals(self) -> list[dict]:
    """The evaluations on held-out documents."""
    return self.kind("eval")

  @functools.cached_property
  def layers(self) -> list[str]:
    """Names of the layers that have routers, by depth."""
    return sorted({name for row in self.train for name in row.get("layers") or {}})

  @property
  def last_step(self) -> int:
    """The newest step that was logged."""
    return max((row.get("step", 0) for row in self.rows), default=0)

  def last(self, key: str, kind: str = "train"):
    """The newest value of a key, None without one."""
    values = [row[key] for row in self.kind(kind) if row.get(key) is not None]
    return values[-1] if values else None

  def series(self, key: str, kind: str = "train", over: str = "step"):
    """(x, y) of a key over the steps (or another key), rows without both left out."""
    return _xy(self.kind(kind), lambda row: row.get(key), over)

  def layer_series(self, layer: str, key: str):
    """(steps, y) of a number that is logged per layer."""
    return _xy(self.train, lambda row: _of_layer(row, layer).get(key), "step")

  def layer_mean(self, key: str) -> float:
    """The mean over the layers with routers of a number, at the newest logged step."""
    return float(np.mean([layer[key] for layer in self.train[-1]["layers"].values()]))

  def load(self, layer: str):
    """(steps, share of choices [steps, ids]); ids that did not exist yet are nan."""
    rows = [row for row in self.train if _of_layer(row, layer).get("load")]
    loads = [row["layers"][layer]["load"] for row in rows]
    share_SU = np.full((len(loads), max(map(len, loads), default=0)), np.nan)
    for i, load in enumerate(loads):
      share_SU[i, : len(load)] = load
    return np.array([row.get("step", 0) for row in rows], float), share_SU


def read(path) -> Run:
  """The run in a folder."""
  path, notes = pathlib.Path(path), []
  if not (path / "metrics.jsonl").is_file():
    missing = "has no metrics.jsonl" if path.is_dir() else "is no folder"
    raise Wrong(f"report: {path} {missing}; give the folder of a run, its --workdir.")
  rows = _standing(_lines(path / "metrics.jsonl", notes))
  config = _json(path / "config.json", notes)
  environment = _json(path / "environment.json", notes)
  sample = path / "sample.txt"
  text = sample.read_text(encoding="utf-8", errors="replace") if sample.is_file() else ""
  return Run(path, rows, config, environment, text, notes)


def smooth(y, share: float = 0.05):
  """Mean of the finite neighbours within about `share` of the points, as many on either side.

  >>> smooth([1.0, 2.0, float("nan"), 6.0], share=0.75).tolist()
  [1.5, 1.5, 4.0, 6.0]
  """
  y = np.asarray(y, float)
  reach = int(share * len(y) / 2)
  good = np.isfinite(y)
  total, count = (np.cumsum([0.0, *a]) for a in (np.where(good, y, 0), good))
  low = np.maximum(np.arange(len(y)) - reach, 0)
  high = np.minimum(np.arange(len(y)) + reach + 1, len(y))
  with np.errstate(invalid="ignore"):
    return (total[high] - total[low]) / (count[high] - count[low])


def _of_layer(row, layer) -> dict:
  return (row.get("layers") or {}).get(layer) or {}


def _xy(rows, value, over):
  points = [(row[over], value(row)) for row in rows if row.get(over) is not None]
  points = [(x, y) for x, y in points if isinstance(y, int | float)]
  x, y = zip(*points, strict=True) if points else ((), ())
  return np.array(x, float), np.array(y, float)


def _lines(path, notes) -> list[dict]:
  """Every line that is a JSON object; a line that is none is noted, not fatal."""
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line) if line.strip() else {}
    except ValueError:
      row = None
    if isinstance(row, dict):
      rows.append(row)
    elif number == len(lines):
      notes.append(
        f"The last line of {path.name} (line {number}) is cut off, as by a kill; it is left out."
      )
    else:
      notes.append(f"Line {number} of {path.name} is not readable; it is left out.")
  return rows


def _standing(rows) -> list[dict]:
  """Without the steps that a resumed run took a second time.

  >>> [row["step"] for row in _standing([{"step": 1}, {"step": 2}, {"kind": "resume", "step": 1}])]
  [1, 1]
  """
  out = []
  for row in rows:
    if row.get("kind") == "resume":
      out = [old for old in out if old.get("step", 0) <= row.get("step", 0)]
    out.append(row)
  return out


def _json(path, notes) -> dict:
  if not path.is_file():
    notes.append(f"There is no {path.name}.")
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError:
    notes.append(f"{path.name} is not readable as JSON; it is left out.")
    return {}
  return value if isinstance(value, dict) else {}
