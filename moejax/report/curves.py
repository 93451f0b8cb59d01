"""Figures of a run as a whole: loss, learning rate, gradients, speed."""

import numpy as np

from moejax.report import style
from moejax.report.keys import KEYS
from moejax.report.read import Run, smooth
from moejax.report.style import C, Plot


def loss(run: Run) -> list[Plot]:
  """Training loss (raw and smoothed) with the validation points."""
  (x, y), (xe, ye) = run.series("loss"), run.series("loss", "eval")
  if not len(x) and not len(xe):
    return []
  caption = "Thin: each logged step. Thick: moving average. Dots: held-out documents."
  return [style.wide("loss", caption, lambda width: _loss(run, width, x, y, xe, ye))]


def _loss(run, width, x, y, xe, ye):
  fig, ax = style.axes("Loss, nats per token", width, 3.5, left=0.5, right=1.2)
  ends = []
  if len(x):
    ax.plot(x, y, color=C["blue"], alpha=0.28, lw=0.9, marker="." if len(x) == 1 else "")
    ax.plot(x, smooth(y), color=C["blue"])
    ends.append((smooth(y)[-1], f"training {smooth(y)[-1]:.3f}", C["blue"]))
  if len(xe):
    ax.plot(xe, ye, color=C["orange"], marker="o", ms=4.5, lw=1.2)
    ends.append((ye[-1], f"validation {ye[-1]:.3f}", C["orange"]))
  style.fit_y(ax, np.concatenate([y, ye]))
  finish(ax, run)
  style.end_labels(ax, ends)
  return fig


def optimiser(run: Run) -> list[Plot]:
  """Learning rate, gradient norm, balance loss, skipped steps."""
  plots = [
    _line(run, "lr", "purple"),
    _line(run, "grad_norm", "teal", smoothed=True, log=True),
    _line(run, "balance", "green", smoothed=True),
  ]
  if run.last("skipped"):
    plots.append(_line(run, "skipped", "red"))
  return [plot for plot in plots if plot]


def knobs(run: Run) -> list[Plot]:
  """The knobs that turned during the run, a line for each layer where they have their own."""
  rows = [row for row in run.train if isinstance(row.get("knobs"), dict)]
  plots = []
  for name in sorted({name for row in rows for name in row["knobs"]}):
    points = [(row["step"], np.ravel(row["knobs"][name])) for row in rows if name in row["knobs"]]
    x, y_SL = [x for x, _ in points], [y for _, y in points]
    if len({len(y) for y in y_SL}) > 1 or not np.ptp(y_SL, axis=0).any():
      continue
    fig, ax = style.axes(f"Knob {name}", height=2.4)
    ax.plot(x, y_SL, color=C["olive"])
    finish(ax, run)
    style.end_labels(
      ax, [(y, style.short(y), C["olive"]) for y in sorted({*y_SL[-1].tolist()})[:8]]
    )
    plots.append(Plot(f"knob_{name}", "", fig))
  return plots


def throughput(run: Run) -> list[Plot]:
  """Tokens per second, step time, FLOPs utilisation against the named peak."""
  peak = run.environment.get("peak") or {}
  against = ""
  if peak.get("flops"):
    against = f"Peak: {style.short(peak['flops'], 'FLOP/s')}, {peak.get('name', 'unnamed')}."
  off = "The first step compiles: it may be off the scale."
  plots = [
    _line(run, "tokens_per_s", "blue", zero=True),
    _line(run, "step_ms", "orange", zero=True, caption=off),
    _line(run, "mfu", "green", zero=True, percent=True, caption=against),
  ]
  return [plot for plot in plots if plot]


def mark_stages(ax, run: Run):
  """A thin line with its name where a stage starts; nothing for a run of one stage."""
  stages = run.kind("stage")
  if len(stages) < 2:
    return
  for row in stages:
    x = row.get("step", 0)
    if x > ax.get_xlim()[0]:
      ax.axvline(x, color=C["muted"], lw=0.8, ls=(0, (2, 3)))
    label = str(row.get("name") or f"stage {row.get('stage', '')}")
    at = max(x, ax.get_xlim()[0])
    ax.text(at, 1.01, f" {label}", transform=ax.get_xaxis_transform(), size=7.5, color=C["muted"])


def finish(ax, run: Run):
  """What every axis over the steps has."""
  style.xlabel(ax, "step")
  ax.margins(x=0.01)
  ax.set_xlim(auto=True)
  mark_stages(ax, run)


def _line(run, key, colour, smoothed=False, log=False, zero=False, percent=False, caption=""):
  """One key of the training lines over the steps, None when it was never logged."""
  x, y = run.series(key)
  if not np.isfinite(y).any():
    return None
  title, unit, meaning = KEYS["train"][key]
  fig, ax = style.axes(f"{title}, {unit}" if unit else title, height=2.4)
  y = 100 * y if percent else y
  line = smooth(y) if smoothed else y
  if smoothed:
    ax.plot(x, y, color=C[colour], alpha=0.28, lw=0.9)
  ax.plot(x, line, color=C[colour], marker="." if len(x) == 1 else "")
  good = y[np.isfinite(y) & (y > 0)]
  if log and len(good) and good.max() > 30 * good.min():
    ax.set_yscale("log")
  else:
    rates = zero and len(y) > 2  # the first step compiles
    style.fit_y(ax, y[1:] if rates else y, share=0.98 if rates else 1.0, zero=zero)
  finish(ax, run)
  mark = "%" if percent else ""
  style.end_labels(ax, [(line[-1], style.short(line[-1]) + mark, C[colour])])
  return Plot(key, " ".join(filter(None, (meaning, caption))), fig)
