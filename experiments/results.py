"""Tables and figures over many runs."""

import csv as csv_module
import io
import pathlib
import textwrap

import numpy as np
from matplotlib.ticker import (
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
  ScalarFormatter,
)

from moejax.lab import plain
from moejax.report import html, read, style

NUMBERS = {  # column -> how it is written
  "loss": "{:.4f}".format, "perplexity": "{:.2f}".format, "bits_per_byte": "{:.4f}".format,
  "flops": style.short, "flops_per_token": style.short, "tokens": style.short,
  "parameters": style.short, "active": style.short, "tokens_per_s": "{:,.0f}".format,
  "seconds": "{:,.0f}".format,
}  # fmt: skip


def outcome(workdir: pathlib.Path) -> dict:
  """The numbers of a run: held-out loss, compute, size and time; what is missing is left out."""
  if not (workdir / "metrics.jsonl").is_file():
    return {"run": workdir.name}
  run = read.read(workdir)
  size = run.environment.get("parameters") or {}
  row = {
    "loss": run.last("loss", "eval"),
    "perplexity": run.last("perplexity", "eval"),
    "bits_per_byte": run.last("bits_per_byte", "eval"),
    "flops": run.last("flops"),
    "flops_per_token": run.environment.get("flops_per_token"),
    "tokens": run.last("tokens"),
    "parameters": size.get("total"),
    "active": size.get("active"),
    "tokens_per_s": _median(run.series("tokens_per_s")[1]),
    "seconds": run.last("time", "done") or run.last("time"),
    "curve": curve(run),
    "run": workdir.name,
  }
  return {key: value for key, value in row.items() if value is not None}


def curve(run: read.Run) -> list[list[float]]:
  """[training FLOPs, held-out loss] of the evaluations on the way, all on the same tokens.

  The last evaluation of a run is on all held-out text; it is no point of this curve.
  """
  step, flops = run.series("flops")
  same = [row for row in run.evals if row.get("tokens") == run.evals[0].get("tokens")]
  if not len(step) or not same:
    return []
  spent = np.interp([row["step"] for row in same], np.r_[0, step], np.r_[0, flops])
  return [[float(x), row["loss"]] for x, row in zip(spent, same, strict=True)]


def table(rows: list[dict], columns=("loss", "bits_per_byte", "flops", "active", "seconds")) -> str:
  """The rows as text for a terminal; `columns` are the numbers to show."""
  first = [key for key in ("name", "arm", "seed", "status") if key in rows[0]]
  numbers = lambda row: (_text(key, row.get(key)) for key in columns)
  cells = [[*(str(row[key]) for key in first), *numbers(row)] for row in rows]
  failed = [f"{row['name']}: {row['error']}" for row in rows if row.get("error")]
  return "\n".join([plain.table([*first, *columns], cells), *failed])


def csv(rows: list[dict]) -> str:
  """The rows as a spreadsheet, settings as columns of their own."""
  flat = [{**row, **row.get("settings", {})} for row in rows]
  skip = ("settings", "curve")
  columns = list(dict.fromkeys(key for row in flat for key in row if key not in skip))
  out = io.StringIO()
  writer = csv_module.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
  writer.writeheader()
  writer.writerows(flat)
  return out.getvalue()


def compute_plot(rows: list[dict], width: float):
  """Held-out loss against training compute: a line through the ends of each series' runs."""
  title = "Held-out loss against training compute"
  fig, ax = style.axes(title, width, 4.2, right=1.3, bottom=0.45)
  ax.set_xscale("log")
  ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: style.short(x)))
  ax.xaxis.set_minor_locator(NullLocator())
  rows = [row for row in rows if "loss" in row and "flops" in row]
  ends = []
  for i, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
    colour = style.CYCLE[i % len(style.CYCLE)]
    mine = [row for row in rows if row["series"] == name]
    for row in mine:
      if row["curve"]:
        ax.plot(*np.array(row["curve"]).T, color=colour, alpha=0.25, linewidth=1)
    last = np.array(sorted((row["flops"], row["loss"]) for row in mine))
    ax.plot(*last.T, color=colour, marker="o", markersize=5)
    ends.append((last[-1, 1], name, colour))
  _frame(ax, [row["loss"] for row in rows], ends, above=1.0)
  return fig


def study_plot(rows: list[dict], claim: str, verdict: str, columns=("loss",)):
  """Some columns of a study side by side: for every arm a dot for each seed, a bar for the mean."""
  arms = list(dict.fromkeys(row["arm"] for row in rows))
  foot = f"A dot is a seed, a bar the mean of an arm.\n{textwrap.fill(verdict, 104)}"
  claim = textwrap.fill(claim, 68)
  top, bottom = 0.35 + 0.2 * len(claim.splitlines()), 0.65 + 0.16 * len(foot.splitlines())
  width, left, gap = 6.4, 0.25 + 0.075 * max(map(len, arms)), 0.3
  height = top + bottom + 0.3 * max(len(arms), 3)
  each = (width - left + gap) / len(columns) - gap
  fig, ax = style.axes(claim, width, height, left, width - left - each + 0.1, top, bottom)
  for i, column in enumerate(columns):
    if i:
      place = ((left + i * (each + gap)) / width, bottom / height)
      ax = fig.add_axes((*place, (each - 0.1) / width, 1 - (top + bottom) / height))
    _strip(ax, rows, arms, column)
    ax.xaxis.set_major_locator(MaxNLocator(max(6 - len(columns), 2)))
    ax.set_yticks(range(len(arms)), [] if i else arms)
  fig.text(0.012, 0.1 / height, foot, size=8, color=style.C["muted"], va="bottom")
  return fig


def _strip(ax, rows, arms, column: str):
  """One column of a study, an arm in each line."""
  for i, arm in enumerate(arms):
    value_S = [row[column] for row in rows if row["arm"] == arm]
    colour = style.CYCLE[i % len(style.CYCLE)]
    ax.plot(value_S, [i] * len(value_S), "o", color=colour, alpha=0.55, markersize=5, mew=0)
    ax.plot([np.mean(value_S)], [i], "|", color=colour, markersize=13, mew=2)
  ax.set_ylim(len(arms) - 0.5, -0.5)
  ax.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
  words = {"loss": "held-out loss, nats"}.get(column, column.replace("_", " "))
  ax.set_xlabel(words, labelpad=4)
  ax.grid(axis="x")


def _frame(ax, losses, ends, above: float):
  """Room around the ends, `above` times their range for the way down to them; labels."""
  if losses:
    room = max(max(losses) - min(losses), 0.02)
    ax.set_ylim(min(losses) - 0.15 * room, max(losses) + above * room)
  style.end_labels(ax, ends)
  ax.set_ylabel("held-out loss, nats per token", labelpad=3)
  style.xlabel(ax, "training FLOPs")


def compute_page(rows: list[dict], title: str, folder: pathlib.Path):
  """loss_vs_compute.png and sweep.html, which holds the figure and the table."""
  caption = (
    "Faint: each run as it trains, on a part of the held-out text. Dots: its end, on all of it; a"
    " line joins the sizes of one series."
  )
  with style.context():
    plot = style.wide("loss_vs_compute", caption, lambda width: compute_plot(rows, width))
    style.png(plot.figure, folder / "loss_vs_compute.png")
    picture = html.figures([plot])
  keys = ["name", "status", *(key for key in NUMBERS if any(key in row for row in rows))]
  cells = [[_text(key, row.get(key)) for key in keys] for row in rows]
  numbers = html.table([key.replace("_", " ") for key in keys], cells, words=2)
  failed = html.notes([f"{row['name']}: {row['error']}" for row in rows if row.get("error")])
  head = html.Raw(f"<h1>{html.escape(title)}</h1>")
  html.write(folder / "sweep.html", html.page(title, head, failed, picture, numbers))


def _text(key, value):
  if isinstance(value, str) or value is None:
    return value or "-"
  return NUMBERS.get(key, "{:.4g}".format)(value)


def _median(values):
  return float(np.median(values)) if len(values) else None
