"""Figures of the routers: health per layer over time, load per expert, experts by domain."""

import numpy as np

from moejax.report import curves, style
from moejax.report.keys import KEYS, Key
from moejax.report.read import Run, smooth
from moejax.report.style import C, Plot

SHOWN = 12  # layers that get a figure of their own; of a deeper model, evenly spaced ones
FINAL = 0.1  # the last tenth of the logged steps stands for "at the end"
BOUND = 2.0  # the colour scale ends at 2**-2 and 2**2 times the fair share


def health(run: Run) -> list[Plot]:
  """One figure per number that layers log; what never left zero is left out, and a fixed K."""
  logged = {key for row in run.train for layer in (row.get("layers") or {}).values()
            for key, value in layer.items() if isinstance(value, int | float)}  # fmt: skip
  other = {"bias_max"} | ({"choices"} if len(_values(run, "choices")) < 2 else set())
  known = [key for key in KEYS["layers"] if key in logged - other]
  plots = (per_layer(run, key) for key in known + sorted(logged - {*KEYS["layers"]}))
  return [plot for plot in plots if plot]


def balance(run: Run) -> list[Plot]:
  """The bias that a controller moves; nothing without one."""
  plot = per_layer(run, "bias_max")
  return [plot] if plot else []


def quiet(run: Run) -> list[str]:
  """Sentences for what stayed at zero from the first step to the last."""
  words = {"dead": "No expert was ever dead", "drop_fraction": "no choice was ever dropped"}
  said = [text for key, text in words.items() if _values(run, key) == {0.0}]
  return [", ".join(said).capitalize() + "."] if said else []


def per_layer(run: Run, key: str) -> Plot | None:
  """A line per layer, coloured and named by depth."""
  if not _values(run, key) - {0.0}:
    return None
  title, unit, meaning = KEYS["layers"].get(key, Key(key, "", ""))
  fig, ax = style.axes(f"{title}, {unit}" if unit else title, height=2.5)
  ends = []
  for layer, colour in zip(run.layers, style.depth_colours(len(run.layers)), strict=True):
    x, y = run.layer_series(layer, key)
    if len(x):
      if len(run.layers) <= 4:
        ax.plot(x, y, color=colour, lw=0.8, alpha=0.28)
      line = smooth(y)
      ax.plot(x, line, color=colour, lw=1.4, marker="." if len(x) == 1 else "")
      ends.append((line[-1], label(layer), colour))
  if key in ("max_vio", "dead", "drop_fraction", "bias_max"):
    ax.set_ylim(bottom=0)
  curves.finish(ax, run)
  style.end_labels(ax, some(ends, 8))
  return Plot(f"router_{key}", meaning, fig)


def load_maps(run: Run) -> list[Plot]:
  """Per layer, the load of every expert (rows) over the steps (columns)."""
  plots = []
  for layer in some(run.layers, SHOWN):
    step_S, share_SU = _binned(*run.load(layer))
    if not share_SU.size:
      continue
    fig, ax = style.axes(f"Load over time, {label(layer)}", height=2.7, left=0.55, right=0.5)
    last = share_SU.shape[1] - 0.5
    half = (step_S[-1] - step_S[0]) / max(1, len(step_S) - 1) / 2 or 0.5
    extent = (step_S[0] - half, step_S[-1] + half, last, -0.5)
    _image(ax, _relative(share_SU).T, extent)
    ax.set_ylabel("expert", labelpad=3)
    _scale(fig, "of fair share")
    style.xlabel(ax, "step")
    plots.append(Plot(f"load_{layer}", "", fig))
  return plots


def final_load(run: Run) -> list[Plot]:
  """At the end: experts from the fullest to the emptiest, against the fair share."""
  if not any(len(run.load(layer)[0]) for layer in run.layers):
    return []
  caption = "Mean over the last tenth of the logged steps. A flat line at 1 is perfect balance."
  return [style.wide("final_load", caption, lambda width: _final_load(run, width))]


def _final_load(run, width):
  title = "Experts sorted by load, multiples of the fair share"
  fig, ax = style.axes(title, width, 3.2, right=1.5)
  ends = []
  for layer, colour in zip(run.layers, style.depth_colours(len(run.layers)), strict=True):
    share_U = final_share(run, layer)
    if share_U is None:
      continue
    y_U = np.sort(share_U)[::-1] * len(share_U)
    dots = "." if len(y_U) <= 16 else ""
    ax.plot(np.arange(1, len(y_U) + 1), y_U, color=colour, lw=1.3, marker=dots)
    ends.append((y_U[-1], f"{label(layer)}, max {y_U[0]:.2f}", colour))
  ax.axhline(1, color=C["muted"], lw=0.9, ls=(0, (4, 3)))
  ax.set_ylim(bottom=0)
  ax.margins(x=0.01)
  style.xlabel(ax, "rank")
  style.end_labels(ax, some(ends, 14))
  return fig


def final_share(run: Run, layer: str):
  """Share of every id at the end of the run, None without any."""
  _, share_SU = run.load(layer)
  if not share_SU.size:
    return None
  tail_SU = share_SU[-max(1, round(FINAL * len(share_SU))) :]
  tail_SU = tail_SU[:, np.isfinite(tail_SU[-1])]  # the ids that there are now
  return np.nanmean(tail_SU, axis=0)


def label(layer: str) -> str:
  """
  >>> label("layer_003"), label("memory")
  ('layer 3', 'memory')
  """
  head, _, number = layer.rpartition("_")
  return f"{head} {int(number)}" if head and number.isdigit() else layer


def some(items, count):
  """At most `count` of them, evenly spaced, the first and the last included."""
  if len(items) <= count:
    return list(items)
  return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def heat(title: str, ratio_YX, rows: list[str], columns: list[str], stem: str) -> Plot:
  """A table of ratios to the expected as colours, its rows named."""
  wide = max(map(len, rows), default=0)
  left = 0.25 + 0.068 * wide
  fig, ax = style.axes(title, 5.4, 1.0 + 0.17 * len(rows), left=left, right=0.6)
  _image(ax, np.log2(np.maximum(ratio_YX, 1e-9)), None)
  ax.set_yticks(range(len(rows)), rows, size=8)
  every = -(-len(columns) // 20)
  ax.set_xticks(range(0, len(columns), every), columns[::every], size=8 if every == 1 else 7)
  style.xlabel(ax, "expert")
  _scale(fig, "of expected")
  return Plot(stem, "", fig)


def _values(run, key) -> set:
  return {float(y) for layer in run.layers for y in run.layer_series(layer, key)[1]}


def _binned(step_S, share_SU, most=240):
  """At most `most` columns: neighbours are averaged, ids that did not exist stay nan."""
  if len(step_S) <= most:
    return step_S, share_SU
  parts = np.array_split(np.arange(len(step_S)), most)
  mean = lambda part: np.where(np.isnan(share_SU[part[-1]]), np.nan, share_SU[part].mean(0))
  return np.array([step_S[p].mean() for p in parts]), np.stack([mean(p) for p in parts])


def _relative(share_SU):
  """log2 of the share over the fair share of the ids there were."""
  count_S1 = np.isfinite(share_SU).sum(1, keepdims=True)
  return np.log2(np.maximum(share_SU * count_S1, 1e-9))


def _image(ax, log_YX, extent):
  ax.imshow(
    np.clip(log_YX, -BOUND, BOUND), cmap=style.BALANCE, vmin=-BOUND, vmax=BOUND, extent=extent,
    aspect="auto", interpolation="none",
  )  # fmt: skip
  ax.grid(False)
  ax.spines[:].set_visible(True)


def _scale(fig, what):
  """The colour key, small, at the top right."""
  width, height = fig.get_size_inches()
  ax = fig.add_axes(((width - 1.35) / width, 1 - 0.21 / height, 1.2 / width, 0.09 / height))
  _image(ax, np.linspace(-BOUND, BOUND, 64)[None], (-BOUND, BOUND, 0, 1))
  ax.set_yticks([])
  ax.set_xticks([-BOUND, 0, BOUND], ["¼×", what, "4×"], size=7)
  ax.tick_params(pad=1)
