"""Tables and figures over many runs."""

import csv as csv_module
import io
import pathlib
import textwrap

import numpy as np
from rich.console import Console
from rich.table import Table

from moejax.report import html, read, style

NUMBERS = {  # column -> how it is printed
  "loss": "{:.4f}", "perplexity": "{:.2f}", "bits_per_byte": "{:.4f}", "flops": "{:.3g}",
  "flops_per_token": "{:.3g}", "tokens": "{:,.0f}", "parameters": "{:,.0f}", "active": "{:,.0f}",
  "tokens_per_s": "{:,.0f}", "seconds": "{:,.0f}",
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
  """[training FLOPs, held-out loss] of every evaluation."""
  step, flops = run.series("flops")
  at, loss = run.series("loss", "eval")
  if not len(step):
    return []
  spent = np.interp(at, np.r_[0, step], np.r_[0, flops])
  return [[float(x), float(y)] for x, y in zip(spent, loss, strict=True) if x > 0]


def table(rows: list[dict], columns=("loss", "bits_per_byte", "flops", "active", "seconds")) -> str:
  """The rows as text for a terminal; `columns` are the numbers to show."""
  first = [key for key in ("name", "arm", "seed", "status") if key in rows[0]]
  out = Table(box=None, header_style="bold")
  for key in (*first, *columns):
    out.add_column(key, justify="left" if key in ("name", "arm", "status") else "right")
  for row in rows:
    out.add_row(*(str(row[key]) for key in first), *(_text(key, row.get(key)) for key in columns))
  console = Console(file=io.StringIO(), width=160)
  console.print(out)
  failed = [f"{row['name']}: {row['error']}" for row in rows if row.get("error")]
  return "\n".join([console.file.getvalue().rstrip(), *failed])


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


def compute_plot(rows: list[dict], title: str):
  """Held-out loss against training compute: a line through the ends of each series' runs."""
  fig, ax = style.axes(title, width=6.4, height=4.0, right=1.4, bottom=0.5, left=0.6)
  ax.set_xscale("log")
  rows = [row for row in rows if row.get("curve")]
  ends = []
  for i, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
    colour = style.CYCLE[i % len(style.CYCLE)]
    mine = [np.array(row["curve"]) for row in rows if row["series"] == name]
    for path in mine:
      ax.plot(*path.T, color=colour, alpha=0.25, linewidth=1)
    last = np.array(sorted(path[-1].tolist() for path in mine))
    ax.plot(*last.T, color=colour, marker="o", markersize=5)
    ends.append((last[-1, 1], name, colour))
  if ends:
    worst = max(row["curve"][-1][1] for row in rows)
    best = min(row["curve"][-1][1] for row in rows)
    room = max(worst - best, 0.02)
    ax.set_ylim(best - 0.15 * room, worst + room)  # the starts of the curves are cut off
  style.end_labels(ax, ends)
  ax.set_ylabel("held-out loss, nats per token")
  style.xlabel(ax, "training compute, FLOPs")
  return fig


def study_plot(rows: list[dict], runs: dict, claim: str, verdict: str):
  """Held-out loss over training compute, a thin line per seed and a thick one for their mean."""
  fig, ax = style.axes(textwrap.fill(claim, 84), width=6.4, height=4.2, right=1.3, top=0.95,
                       bottom=0.85, left=0.6)  # fmt: skip
  ends = []
  for i, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
    colour = style.CYCLE[i % len(style.CYCLE)]
    curves = [np.array(curve(run)) for (of, _), run in runs.items() if of == arm]
    for path in curves:
      ax.plot(*path.T, color=colour, alpha=0.3, linewidth=0.8)
    mean = np.mean([path for path in curves if path.shape == curves[0].shape], axis=0)
    ax.plot(*mean.T, color=colour, linewidth=2)
    ends.append((mean[-1, 1], arm, colour))
  low, high = min(y for y, *_ in ends), max(y for y, *_ in ends)
  ax.set_ylim(low - 0.1 * (high - low) - 0.02, high + 4 * (high - low) + 0.1)
  style.end_labels(ax, ends)
  ax.set_ylabel("held-out loss, nats per token")
  style.xlabel(ax, "training compute, FLOPs")
  fig.text(0.012, 0.02, textwrap.fill(verdict, 100), size=8, color=style.C["muted"])
  return fig


def compute_page(rows: list[dict], title: str, folder: pathlib.Path):
  """loss_vs_compute.png and sweep.html, which holds the figure and the table."""
  caption = "Faint: each run as it trains. Dots: its end; a line joins the sizes of one series."
  with style.context():
    fig = compute_plot(rows, "Held-out loss against training compute")
    style.png(fig, folder / "loss_vs_compute.png")
    picture = html.figures([style.Plot("loss_vs_compute", caption, fig)])
  keys = ["name", "status", *(key for key in NUMBERS if any(key in row for row in rows))]
  cells = [[_text(key, row.get(key)) for key in keys] for row in rows]
  numbers = html.table([key.replace("_", " ") for key in keys], cells, words=2)
  failed = html.notes([f"{row['name']}: {row['error']}" for row in rows if row.get("error")])
  head = html.Raw(f"<h1>{html.escape(title)}</h1>")
  html.write(folder / "sweep.html", html.page(title, head, failed, picture, numbers))


def _text(key, value):
  if isinstance(value, str) or value is None:
    return value or "-"
  return NUMBERS.get(key, "{:.4g}").format(value)


def _median(values):
  return float(np.median(values)) if len(values) else None
