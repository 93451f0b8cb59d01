"""What differs between two traces of the same text: choices that flipped, and where they stood."""

import numpy as np

from moejax.core.plugin import Wrong
from moejax.trace.format import Block, Trace

EDGES = (-np.inf, 0.0, 0.001, 0.01, 0.03, 0.1, 0.3, np.inf)  # of the boundary margin


def flips(a_NK, b_NK):
  """(choices of a token that only one side has, choices it has): swapped places are no flip.

  >>> a, b = np.array([[0, 1], [2, 3], [4, -1]]), np.array([[1, 0], [2, 5], [-1, -1]])
  >>> [row.tolist() for row in flips(a, b)]
  [[0, 1, 1], [2, 2, 1]]
  """
  same_NKK = (a_NK[:, :, None] == b_NK[:, None]) & (a_NK >= 0)[:, :, None]
  only_a = (a_NK >= 0).sum(1) - same_NKK.any(2).sum(1)
  only_b = (b_NK >= 0).sum(1) - same_NKK.any(1).sum(1)
  return np.maximum(only_a, only_b), np.maximum((a_NK >= 0).sum(1), (b_NK >= 0).sum(1))


def check(trace: Trace, layers: dict, what: str) -> None:
  """Refuses a trace whose layers are not those of `what`."""
  theirs, lines = trace.head.layers, []
  size = lambda layer: f"K={layer['K']} of U={layer['U']}" if layer else "no choices"
  for name in sorted({*theirs, *layers}):
    if theirs.get(name) != layers.get(name):
      lines.append(f"{name} has {size(theirs.get(name))} there and {size(layers.get(name))} here")
  if lines:
    more = f"; and {len(lines) - 4} more" if len(lines) > 4 else ""
    raise Wrong(
      f"trace {trace.path} is of another model than {what}: {'; '.join(lines[:4])}{more}. Use a"
      " trace of a model with the same layers, choices and experts."
    )


def pairs(a: Trace, b: Trace) -> list[tuple[Block, Block]]:
  """Blocks of the same text: of the same step where there are, else each with the other's last."""
  key = lambda block: (block.batch, block.text, len(block.label_N))
  exact = {(block.step, *key(block)): block for block in b.blocks}
  found = [(x, exact[x.step, *key(x)]) for x in a.blocks if (x.step, *key(x)) in exact]
  if found:
    return found
  last_a, last_b = ({key(block): block for block in trace.blocks} for trace in (a, b))
  return [(x, last_b[k]) for k, x in last_a.items() if k in last_b]


def compare(a: Trace, b: Trace) -> dict:
  """Flip rates by layer, by margin and by kind of text; `rate` is flipped choices over choices."""
  check(a, b.head.layers, f"trace {b.path}")
  found = pairs(a, b)
  if not found:
    raise Wrong(
      f"trace: {a.path} and {b.path} have no batch of the same text in common; record both over the"
      " same split with the same batch size."
    )
  return of_pairs(found, a.head)


def of_pairs(found: list[tuple[Block, Block]], head) -> dict:
  """The same for pairs of blocks."""
  labels = head.labels or ("all",)
  layers, margins, by_label = {}, np.zeros((len(EDGES) - 1, 2)), np.zeros((len(labels), 2))
  for name in head.layers:
    total = np.zeros(4)
    for one, other in found:
      mine, theirs = one.layers[name], other.layers[name]
      flip_N, count_N = flips(mine["expert_NK"], theirs["expert_NK"])
      total += flip_N.sum(), count_N.sum(), (flip_N > 0).sum(), (count_N > 0).sum()
      at_N = np.digitize(mine["boundary_N"].astype(np.float64), EDGES) - 1
      for table, index_N in ((margins, at_N), (by_label, one.label_N)):
        np.add.at(table, index_N, np.stack([flip_N, count_N], axis=1))
    layers[name] = {**_rate(*total[:2]), "tokens": _share(*total[2:])}
  spans = list(zip(EDGES, EDGES[1:], strict=False))
  return {
    "pairs": [(one.step, other.step, one.batch) for one, other in found],
    "layers": layers,
    "margins": [
      {"from": low, "to": high, **_rate(*row)}
      for (low, high), row in zip(spans, margins, strict=True)
    ],
    "labels": {label: _rate(*row) for label, row in zip(labels, by_label, strict=True)},
  }


def span(margins: dict) -> str:
  """The name of one of `margins`.

  >>> span({"from": 0.1, "to": 0.3}), span({"from": 0.3, "to": np.inf})
  ('0.1 to 0.3', 'above 0.3')
  """
  low, high = margins["from"], margins["to"]
  if np.isinf(low):
    return f"below {high:g}"
  return f"above {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"


def _share(part, whole) -> float:
  return float(part) / max(float(whole), 1.0)


def _rate(flip, count) -> dict:
  return {"rate": _share(flip, count), "choices": int(count)}
