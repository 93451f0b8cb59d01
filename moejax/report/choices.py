"""Single choices: how they flip from one recorded step to the next, and whether they were good.

Read from what was written beside the run: traces/*.trace (`python -m moejax trace record`, or
train.trace_every) and counterfactual.json (`python -m moejax counterfactual`).
"""

import json

import numpy as np

from moejax.core.plugin import Wrong
from moejax.report import curves, routing, style
from moejax.report.read import Run
from moejax.report.style import C, Plot
from moejax.trace import diff
from moejax.trace import format as formats

ABOUT_FLIPS = (
  "Held-out text recorded at several steps: a choice flips when a token no longer makes it."
)
ABOUT_REGRET = (
  "The weakest choice of single held-out tokens was replaced by every other expert. Regret: what"
  " the best one in hindsight would have gained. Captured: how far the router goes from a random"
  " expert (0) to the best (1). Value: what the layer would lose without the expert."
)
COLUMNS = {
  "tokens": "tokens", "loss": "loss", "oracle": "best expert",
  "random": "random expert", "regret": "regret", "captured": "captured", "rank": "mean rank",
  "alternatives": "of", "best_share": "already best", "cheap_error": "cheap error",
}  # fmt: skip


def flips(run: Run):
  """(figures, html table parts as (head, rows), sentences) of the traces of a run."""
  blocks, heads, notes = _traces(run)
  pairs = _pairs(blocks)
  if not pairs:
    return [], [], notes
  head, found = heads[-1], {}
  for steps, some in sorted(pairs.items()):
    found[steps] = diff.of_pairs(some, head)
  last, newest = found[max(found)], max(found)
  tables = [
    (["margin of the boundary", "flipped", "choices"], [
      [diff.span(v), _percent(v["rate"]), f"{v['choices']:,}"]
      for v in last["margins"] if v["choices"]
    ]),
    (["kind of text", "flipped", "choices"], [
      [name, _percent(v["rate"]), f"{v['choices']:,}"]
      for name, v in sorted(last["labels"].items(), key=lambda item: -item[1]["choices"])[:24]
      if v["choices"]
    ]),
  ]  # fmt: skip
  notes.append(f"The tables are of steps {newest[0]} and {newest[1]}.")
  return [_flips(run, found), _margins(run, blocks)], tables, notes


def regret(run: Run):
  """(figures, (head, rows), sentences) of counterfactual.json."""
  file = run.path / "counterfactual.json"
  try:
    layers = json.loads(file.read_text())["layers"] if file.is_file() else {}
    if not layers:
      return [], ([], []), []
    steps = sorted({one["step"] for one in layers.values()})
    rows = [
      [routing.label(name), *(_cell(one[column]) for column in COLUMNS)]
      for name, one in sorted(layers.items())
    ]
    plots = [_regrets(layers), _values(layers)]
  except (ValueError, KeyError, TypeError):
    return [], ([], []), [f"{file.name} is not readable; it is left out."]
  said = f"Measured at step {', '.join(map(str, steps))}; losses in nats per token."
  return plots, (["layer", *COLUMNS.values()], rows), [said]


def _traces(run):
  """(blocks of held-out text by (batch, text), heads, sentences on what could not be read)."""
  blocks, heads, notes = {}, [], []
  for path in sorted((run.path / "traces").glob("*.trace")):
    try:
      if formats.read_head(path).about.get("split") != "validation":
        continue
      trace = formats.read(path)
    except Wrong as reason:
      notes.append(str(reason))
      continue
    notes += [trace.damage] if trace.damage else []
    if heads and trace.head.layers != heads[0].layers:
      notes.append(f"{path.name} is of other layers than the first trace; it is left out.")
      continue
    heads.append(trace.head)
    for block in trace.blocks:
      blocks.setdefault((block.batch, block.text, len(block.label_N)), {})[block.step] = block
  return blocks, heads, notes


def _pairs(blocks) -> dict:
  """(earlier step, later step) -> pairs of blocks of the same text."""
  pairs = {}
  for by_step in blocks.values():
    steps = sorted(by_step)
    for a, b in zip(steps, steps[1:], strict=False):
      pairs.setdefault((a, b), []).append((by_step[a], by_step[b]))
  return pairs


def _flips(run, found):
  fig, ax = style.axes("Choices flipped since the step recorded before, %", height=2.7)
  rates = lambda layer: [100 * one["layers"][layer]["rate"] for one in found.values()]
  layers = next(iter(found.values()))["layers"]
  _lines(run, ax, [b for _, b in found], {layer: rates(layer) for layer in layers}, bottom=0)
  return Plot("choices_flips", "Of the choices of the same held-out tokens.", fig)


def _margins(run, blocks):
  fig, ax = style.axes("Margin of the boundary, median", height=2.7)
  by_step = {}
  for text in blocks.values():
    for step, block in text.items():
      by_step.setdefault(step, []).append(block)

  def median(layer, step):
    mine = [block.layers[layer] for block in by_step[step]]
    used = [one["boundary_N"][(one["expert_NK"] >= 0).any(1)] for one in mine]
    return float(np.median(np.concatenate(used).astype(np.float64)))

  steps, layers = sorted(by_step), next(iter(by_step.values()))[0].layers
  _lines(run, ax, steps, {layer: [median(layer, step) for step in steps] for layer in layers})
  meaning = "Probability of the last chosen expert above that of the best one left out."
  return Plot("choices_margins", meaning, fig)


def _lines(run, ax, steps, by_layer, bottom=None):
  """A line for each layer over the steps, some of them named at their ends."""
  ends = []
  for (layer, y), colour in zip(by_layer.items(), _colours(by_layer), strict=True):
    ax.plot(steps, y, color=colour, lw=1.4, marker="." if len(y) < 20 else "")
    ends.append((y[-1], routing.label(layer), colour))
  if bottom is not None:
    ax.set_ylim(bottom=bottom)
  curves.finish(ax, run)
  style.end_labels(ax, routing.some(ends, 8))


def _regrets(layers):
  fig, ax = style.axes("Regret of single tokens, sorted, nats", height=2.9, right=1.1)
  ends = []
  for (layer, one), colour in zip(sorted(layers.items()), _colours(layers), strict=True):
    y = np.array(one["regrets"], float)
    ax.plot(np.linspace(0, 100, len(y)), y, color=colour, lw=1.4, marker="." if len(y) == 1 else "")
    ends.append((y[-1], f"{routing.label(layer)}, {one['regret']:.3f}", colour))
  ax.set_ylim(bottom=0)
  ax.margins(x=0.01)
  style.xlabel(ax, "% of tokens")
  style.end_labels(ax, routing.some(ends, 8))
  caption = "Named with the mean: 0 where the router took the best expert there was."
  return Plot("choices_regret", caption, fig)


def _values(layers):
  fig, ax = style.axes("Value of an expert over its load, nats per token", height=2.9, right=1.1)
  ends = []
  for (layer, one), colour in zip(sorted(layers.items()), _colours(layers), strict=True):
    load_U, value_U = (np.array(one["experts"][name], float) for name in ("load", "value"))
    fair_U = load_U * len(load_U)
    ax.plot(fair_U, value_U, ls="", marker="o", ms=4, color=colour, alpha=0.75)
    ends.append((value_U[fair_U.argmax()], routing.label(layer), colour))
  ax.axhline(0, color=C["muted"], lw=0.8)
  ax.set_xlim(left=0)
  style.xlabel(ax, "× fair share")
  style.end_labels(ax, routing.some(ends, 8))
  return Plot("choices_value", "A dot per expert: loss without it, minus loss with it.", fig)


def _colours(layers):
  return style.depth_colours(len(layers))


def _percent(share: float) -> str:
  return f"{100 * share:.2f}%"


def _cell(value) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
