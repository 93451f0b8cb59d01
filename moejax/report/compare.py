"""Several runs in one page: their losses over tokens, compute and time, and where they end."""

import os
import pathlib

import numpy as np

from moejax.core.plugin import Wrong
from moejax.report import html, page, style
from moejax.report.read import Run, read, smooth
from moejax.report.style import Plot

OVER = {  # key of the training lines -> what the axis counts
  "tokens": ("tokens", "Loss over tokens"),
  "flops": ("FLOPs", "Loss over compute"),
  "time": ("s", "Loss over time"),
}
DIFFERENCES = 60  # rows of the table of config differences


def write(workdirs, out="comparison.html") -> pathlib.Path:
  """Writes the comparison of at least two runs; returns its path."""
  runs = [read(path) for path in workdirs]
  if len(runs) < 2:
    raise Wrong(f"report: a comparison needs two runs or more, {len(runs)} given; add folders.")
  names = _names(runs)
  with style.context():
    plots = [plot for key in OVER if (plot := _overlay(runs, names, key))]
    figures = html.figures(plots)
  text = html.page(
    "Comparison of runs",
    f"<header><h1>Comparison of {len(runs)} runs</h1>{html.notes(_notes(runs, names))}</header>",
    html.section("finals", "Where they end", "Bold: the best of a column.", _finals(runs, names)),
    html.section("loss", "Loss", "Dots: held-out documents. Thin: training, smoothed.", figures),
    html.section("config", "What differs", "Config values that are not the same everywhere.",
                 _differences(runs, names)),
  )  # fmt: skip
  path = pathlib.Path(out)
  html.write(path, text)
  return path


def at(run: Run, key: str):
  """(x, validation loss) with the evaluations placed by their steps on a training key's axis."""
  step_E, loss_E = run.series("loss", "eval")
  step_S, x_S = run.series(key)
  if not len(step_S) or not len(step_E):
    return np.array([]), np.array([])
  return np.interp(step_E, [0, *step_S], [0, *x_S]), loss_E


def _overlay(runs, names, key) -> Plot | None:
  if not any(len(run.series("loss", over=key)[0]) for run in runs):
    return None
  return style.wide(f"compare_{key}", "", lambda width: _draw(runs, names, key, width))


def _draw(runs, names, key, width):
  unit, title = OVER[key]
  fig, ax = style.axes(f"{title}, nats per token", width, 3.5, left=0.5, right=1.6)
  ends, seen = [], []
  for i, (run, name) in enumerate(zip(runs, names, strict=True)):
    colour = style.CYCLE[i % len(style.CYCLE)]
    (x, y), (xe, ye) = run.series("loss", over=key), at(run, key)
    if len(x):
      ax.plot(x, smooth(y), color=colour, lw=0.9, alpha=0.45)
    ax.plot(xe, ye, color=colour, marker="o", ms=3.5, lw=1.5)
    seen += [*smooth(y), *ye]
    last = (xe[-1], ye[-1]) if len(xe) else (x[-1], smooth(y)[-1]) if len(x) else None
    if last:
      ends.append((last[1], f"{name[:18]} {last[1]:.3f}", colour, last[0]))
  style.fit_y(ax, np.array(seen))
  style.xlabel(ax, unit)
  style.end_labels(ax, ends)
  return fig


def _finals(runs, names) -> str:
  """The table of last values; the lowest loss and the highest speed are bold."""
  best = lambda values, pick: pick((v for v in values if v is not None), default=None)
  evals = {k: [r.last(k, "eval") for r in runs] for k in ("loss", "perplexity", "bits_per_byte")}
  speed = [page.median_speed(run) for run in runs]
  columns = [
    ("validation loss", evals["loss"], "{:.4f}".format, min),
    ("perplexity", evals["perplexity"], "{:.2f}".format, min),
    ("bits per byte", evals["bits_per_byte"], "{:.3f}".format, min),
    ("training loss", [run.last("loss") for run in runs], "{:.4f}".format, None),
    ("steps", [run.last_step for run in runs], "{:,}".format, None),
    ("tokens", [run.last("tokens") for run in runs], style.short, None),
    ("FLOPs", [run.last("flops") for run in runs], style.short, None),
    ("time", [page.elapsed(run) for run in runs], style.duration, None),
    ("tokens/s", speed, style.short, max),
    ("parameters", [_parameters(run, "total") for run in runs], style.short, None),
    ("active", [_parameters(run, "active") for run in runs], style.short, None),
  ]
  columns = [c for c in columns if any(value is not None for value in c[1])]
  rows = []
  for i, name in enumerate(names):
    swatch = f'<i class="swatch" style="background:{_colour(i)}"></i>{html.escape(name)}'
    row: list[str] = [html.Raw(swatch)]
    for _, values, form, pick in columns:
      text = "" if values[i] is None else form(values[i])
      bold = pick and values[i] is not None and values[i] == best(values, pick)
      row.append(html.Raw(f"<b>{text}</b>") if bold else text)
    rows.append(row)
  return html.table(["run", *(c[0] for c in columns)], rows)


def _differences(runs, names) -> str:
  """Config paths by runs, only those at which two runs differ."""
  flat = [dict(_leaves(run.config)) for run in runs]
  keys = [k for k in dict.fromkeys(k for f in flat for k in f) if len({f.get(k) for f in flat}) > 1]
  rows = _joined([(key, [f.get(key, "") for f in flat]) for key in keys])
  more = f'<p class="quiet">{len(rows) - DIFFERENCES} more differ.</p>' * (len(rows) > DIFFERENCES)
  table = html.table(["field", *names], rows[:DIFFERENCES])
  return table + more if rows else "<p>Nothing: the configs are equal.</p>"


def _joined(rows) -> list[list[str]]:
  """Rows of items that differ in the same way as one.

  >>> _joined([("layers[0].k", ["1", "2"]), ("layers[3].k", ["1", "2"]), ("seed", ["0", "1"])])
  [['layers[0,3].k', '1', '2'], ['seed', '0', '1']]
  """
  alike = {}
  for key, values in rows:
    head, _, tail = key.partition("[")
    index, _, rest = tail.partition("]")
    alike.setdefault((head, rest, *values), []).append(index)
  where = lambda found: f"[{','.join(found)}]" if found[0] else ""
  return [[f"{k[0]}{where(found)}{k[1]}", *k[2:]] for k, found in alike.items()]


def _leaves(value, path=""):
  """(path, value as text) of everything in a nested config."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from _leaves(item, f"{path}.{key}" if path else key)
  elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
    for i, item in enumerate(value):
      yield from _leaves(item, f"{path}[{i}]")
  else:
    yield path, str(value)


def _names(runs) -> list[str]:
  """Folder names; where two are equal, as much of the path as tells them apart."""
  names = [run.name for run in runs]
  if len(set(names)) == len(names):
    return names
  paths = [run.path.resolve() for run in runs]
  root = os.path.commonpath([path.parent for path in paths])
  return [str(path.relative_to(root)) for path in paths]


def _notes(runs, names) -> list[str]:
  return [f"{name}: {text}" for run, name in zip(runs, names, strict=True) for text in run.notes]


def _parameters(run, which):
  return (run.environment.get("parameters") or {}).get(which)


def _colour(i) -> str:
  names = list(style.COLOURS)[3:]
  return f"var(--{names[i % len(names)]})"
