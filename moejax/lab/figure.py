"""The balance laboratory as a figure: MaxVio over the steps, and what each speed costs."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from moejax.report import style


def draw(result: dict) -> Figure:
  """Three panels: the best speed of each controller over the steps; MaxVio and regret by speed."""
  fig = Figure(figsize=(11.5, 3.8))
  over_steps, by_speed, cost = fig.subplots(1, 3, width_ratios=(1.3, 1, 1))
  for i, rule in enumerate(result["rules"]):
    colour = style.CYCLE[i % len(style.CYCLE)]
    over_steps.plot(rule["curve"], color=colour, linewidth=1.1)
    column = lambda key, rule=rule: [row[key] for row in rule["speeds"]]
    stable = np.array([row["settles"] is not None for row in rule["speeds"]])
    for ax, key in ((by_speed, "max_vio"), (cost, "regret")):
      x, y = np.array(column("speed")), np.array(column(key))
      ax.plot(x, y, color=colour, linewidth=1.1, label=rule["rule"])
      ax.plot(x[stable], y[stable], color=colour, marker="o", markersize=3.5, linestyle="")
  for ax in (over_steps, by_speed):
    ax.axhline(result["bound"], color=style.C["muted"], linewidth=0.8, linestyle=":")
    ax.axhline(result["without"], color=style.C["muted"], linewidth=0.8, linestyle="--")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: style.short(y)))
  for ax in (by_speed, cost):
    ax.set_xscale("log")
    ax.set_xlabel("speed")
  over_steps.set_xlabel("control step")
  titles = ("MaxVio at the best speed", "MaxVio at the end", "Selection regret at the end")
  for ax, title in zip((over_steps, by_speed, cost), titles, strict=True):
    ax.set_title(title, loc="left", weight="bold", size=10)
  cost.legend(frameon=False, fontsize=8)
  said = "Dots: speeds that settle. Dotted: the bound. Dashed: without a controller."
  fig.text(0.012, 0.015, f"{result['source']}. {said}", size=8, color=style.C["muted"])
  fig.tight_layout(rect=(0, 0.05, 1, 1))
  return fig


def write(result: dict, path) -> None:
  """The figure as a file."""
  with style.context():
    style.png(draw(result), path)
