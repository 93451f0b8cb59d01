"""One look for every figure: palette, axes, direct labels, and the way into a page or a file.

A figure is drawn once. As a PNG it has the light palette; inside a page it is SVG whose colours
are the page's CSS variables, so it follows the reader's light or dark theme.
"""

import dataclasses
import io
import re
import typing

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLOURS = {  # name -> (light, dark): no two of the first are equal, for the way back to names
  "ink": ("#1b2026", "#e8eaed"),
  "muted": ("#68717b", "#9aa3ad"),
  "grid": ("#e4e7eb", "#2c323a"),
  "blue": ("#2563c9", "#6ea3f7"),
  "orange": ("#d9691e", "#f2955a"),
  "green": ("#1d8a63", "#4cc598"),
  "purple": ("#7c4dc4", "#b394f0"),
  "red": ("#c23a52", "#f0788c"),
  "teal": ("#118a9c", "#4cc3d4"),
  "olive": ("#8a7a12", "#cdbb4a"),
  "pink": ("#b8408f", "#ec86c6"),
}
C = {name: light for name, (light, _) in COLOURS.items()}
CYCLE = [C[n] for n in ("blue", "orange", "green", "purple", "red", "teal", "olive", "pink")]
DEPTH = LinearSegmentedColormap.from_list("depth", ["#1a9cae", "#6a6fd6", "#c2418f", "#dd6a2c"])
_UNDER, _OVER = (0.88, 0.44, 0.09), (0.13, 0.42, 0.85)
BALANCE = LinearSegmentedColormap.from_list(  # no ink at the fair share, in either theme
  "balance", [(*_UNDER, 1), (*_UNDER, 0.5), (*_UNDER, 0), (*_OVER, 0), (*_OVER, 0.5), (*_OVER, 1)]
)
RC: typing.Any = {
  "font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "moejax",
  "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
  "text.color": C["ink"], "axes.labelcolor": C["muted"], "axes.edgecolor": C["grid"],
  "xtick.color": C["muted"], "ytick.color": C["muted"], "xtick.major.size": 0,
  "ytick.major.size": 0, "axes.grid": True, "axes.grid.axis": "y", "grid.color": C["grid"],
  "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.spines.top": False,
  "axes.spines.right": False, "axes.spines.left": False, "lines.linewidth": 1.6,
  "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plot:
  stem: str  # plots/<stem>.png
  caption: str
  figure: Figure
  narrow: Figure | None = None  # the same for a phone, where `figure` takes the page's width


def axes(title: str, width=5.4, height=3.0, left=0.55, right=0.85, top=0.45, bottom=0.27):
  """(figure, axes) with margins in inches and a title at the left."""
  fig = Figure(figsize=(width, height))
  inside = ((width - left - right) / width, (height - top - bottom) / height)
  ax = fig.add_axes((left / width, bottom / height, *inside))
  fig.text(0.08 / width, 1 - 0.12 / height, title, va="top", weight="bold", size=10.5)
  ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
  ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
  ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
  ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
  return fig, ax


def xlabel(ax, text: str):
  """What the axis counts, behind its last number."""
  place = dict(xycoords="axes fraction", textcoords="offset points", va="top", color=C["muted"])
  ax.annotate(text, (1, 0), (14, -3.5), size=9, **place)


def fit_y(ax, y, share=1.0, zero=False):
  """Limits around all values, or around the given share of them where outliers would spoil it."""
  y = y[np.isfinite(y)]
  if not len(y):
    return
  low, high = (0.0 if zero else y.min()), np.quantile(y, share)
  pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  ax.set_ylim(low if zero else low - pad, high + (3 if zero else 1) * pad)


def wide(stem: str, caption: str, draw) -> Plot:
  """draw(width in inches) for the whole width of a page, and again for a phone."""
  return Plot(stem, caption, draw(9.2), draw(5.4))


def short(x: float, unit: str = "") -> str:
  """A number for an axis or a table.

  >>> [short(x) for x in (0, 0.25, 1.5, 12, 1500, 2_000_000, 3.2e-4, float("nan"))]
  ['0', '0.25', '1.5', '12', '1.5k', '2M', '0.00032', 'n/a']
  >>> short(9.1e10, "FLOP/s")
  '91 GFLOP/s'
  """
  if not np.isfinite(x):
    return "n/a"
  for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"),
                       (1e3, "k")):  # fmt: skip
    if abs(x) >= size * 0.99999:
      return f"{x / size:.3g}{unit and ' '}{letter}{unit}"
  text = f"{x:.3g}" if abs(x) < 1e-5 or abs(x) >= 1e-4 else f"{x:.7f}".rstrip("0")
  return f"{text} {unit}" if unit else text


def duration(seconds: float) -> str:
  """
  >>> duration(4.25), duration(192), duration(7380)
  ('4.2 s', '3 min 12 s', '2 h 3 min')
  """
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  return f"{minutes // 60} h {minutes % 60} min"


def end_labels(ax, items, size=8.5):
  """Names at the ends of lines, moved apart where they would overlap.

  items: (y of the end, text, colour), and x of the end for a line that may stop early: then its
  name stands there and not in the margin.
  """
  items = sorted((item for item in items if np.isfinite(item[0])), key=lambda item: item[0])
  if not items:
    return
  ends = [(item[3] if len(item) > 3 else ax.get_xlim()[1], item[0]) for item in items]
  place = ax.transAxes.inverted().transform(ax.transData.transform(ends))
  gap = 1.15 * size / (ax.get_window_extent().height * 72 / ax.figure.dpi)
  for i, at in enumerate(spread(place[:, 1], gap)):
    at = min(max(at, 0.03 + gap * i), 1 - gap * (len(items) - 1 - i))  # inside the axes
    x = place[i, 0] if place[i, 0] < 0.85 else 1.0
    _, text, colour, *_ = items[i]
    ax.text(x + 0.015, at, text, transform=ax.transAxes, va="center", size=size, color=colour)


def spread(want, gap: float):
  """Ascending positions at least `gap` apart, as near to `want` as the neighbours allow.

  >>> [round(x, 2) for x in spread([0.5, 0.5, 0.9], 0.1)]
  [0.45, 0.55, 0.9]
  """
  groups = []  # lists of wished starts; a group stands at their mean
  for i, x in enumerate(want):
    groups.append([x - gap * i])
    while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
      groups[-2:] = [groups[-2] + groups[-1]]
  starts = [float(np.mean(group)) for group in groups for _ in group]
  return [start + gap * i for i, start in enumerate(starts)]


def depth_colours(count: int) -> list[str]:
  """Colours from the first layer to the last."""
  return [to_hex(DEPTH(i / max(1, count - 1))) for i in range(count)]


def png(figure, path):
  """The figure as a file, on white."""
  figure.savefig(path, dpi=160, facecolor="white")


def svg(figure, stem: str) -> str:
  """The figure for a page: theme colours, ids that are its own, sized by the page."""
  out = io.StringIO()
  figure.savefig(out, format="svg", metadata={"Date": None})
  text = out.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
  text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
  text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
  text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{stem}-", text)
  for name, colour in C.items():
    text = text.replace(colour, f"var(--{name})")
  return text


def context():
  """The settings that figures are drawn under; use with `with`."""
  return matplotlib.rc_context(RC)
