"""Do chunks leave training alone, and would layers want other numbers forward and backward?"""

import functools

import numpy as np

from configs.studies.chunked import ARMS  # the arms are data and live in configs/
from experiments import verdicts
from moejax.perf import pipeline
from moejax.perf.pipeline import Cost, Costs, Sizes

CLAIM = (
  "Any numbers of chunks train to the same loss within 0.1 per cent; under a model of two clusters"
  " most of 200 random layers want other numbers forward and backward, and none is slower than with"
  " two chunks."
)
MARGIN, LAYERS, DEPTH = 0.001, 200, 12  # layers that are drawn; equal ones of a model
CLUSTERS = {  # bytes/s between nodes and inside one, FLOP/s that experts reach
  "fast": (50e9, 450e9, 500e12),
  "slow": (12.5e9, 25e9, 100e12),
}


@functools.cache
def modelled() -> dict:
  """Shares of layers with unequal best numbers, speedups over two chunks in both passes, and shares
  of the gradients of attention that go into pauses of the links in a model of such layers."""
  draw, out = np.random.default_rng(0), {}
  drawn = [_layer(draw) for _ in range(LAYERS)]
  for name, (between, inside, flops) in CLUSTERS.items():
    link, near, chip = Cost(1e-5, 1 / between), Cost(5e-6, 1 / inside), Cost(1e-5, 1 / flops)
    costs = Costs(link, near, chip, near)
    unequal, gains, hidden = 0, [], []
    for sizes, gradient in drawn:
      backward = sizes._replace(expert=2 * sizes.expert)
      chunks = pipeline.both(costs, sizes)
      end = lambda r, s, costs=costs: pipeline.simulate(r, *pipeline.times(costs, s, r))
      best = end(chunks[0], sizes) + end(chunks[1], backward)
      unequal += chunks[0] != chunks[1]
      gains.append((end(2, sizes) + end(2, backward)) / best)
      pauses = pipeline.gaps(chunks[1], *pipeline.times(costs, backward, chunks[1]))
      come = [0.0] + [gradient] * (DEPTH - 1)  # those of a layer are there before the next one
      taken, _ = pipeline.partition(come, [pauses] * DEPTH, link)
      hidden.append(sum(taken) / (DEPTH * gradient))
    out[f"{name}_hidden"] = float(np.mean(hidden))
    out |= {f"{name}_unequal": unequal / LAYERS, f"{name}_gain": float(np.mean(gains))}
    out[f"{name}_least"] = float(min(gains))
  return out


def _layer(draw) -> tuple[Sizes, float]:
  """A layer on one device of eight nodes of eight: bfloat16, top-2, experts over nodes; and bytes
  that a link between nodes carries for the sum of the gradients of its attention."""
  tokens, D = int(draw.choice([512, 1024, 2048, 4096, 8192])), int(draw.choice([1024, 2048, 4096]))
  F = D * int(draw.choice([2, 3, 4]))
  rows = 2 * 1.2 * tokens
  sizes = Sizes(2 * rows * D, 8 * 2 * rows * D, 8 * rows * 6 * D * F / 8, 8 * 2 * rows * D)
  return sizes, 2 * 7 / 8 * (2 * 4 * D * D / 8)  # a ring of nodes, each device with an eighth


def measure(run) -> dict:
  """One row of the table, from a finished run."""
  return {"loss": run.last("loss", "eval"), **modelled()}


def verdict(table) -> str:
  """Equal losses and the model: the weaker word of the two."""
  same = verdicts.close(table, "loss", tuple(ARMS), MARGIN)
  of = {key: table.values("whole", key)[0] for key in table.rows[0] if key.startswith(("fa", "sl"))}
  good = all(of[f"{n}_unequal"] > 0.5 and of[f"{n}_least"] >= 1 - 1e-9 for n in CLUSTERS)
  words = [
    f"{name} cluster {100 * of[f'{name}_unequal']:.0f} % unequal, {of[f'{name}_gain']:.2f} times"
    f" two chunks (least {of[f'{name}_least']:.2f}), {100 * of[f'{name}_hidden']:.0f} % of other"
    " gradients in pauses"
    for name in CLUSTERS
  ]
  model = f"{'holds' if good else 'fails'}: modelled, {'; '.join(words)}"
  return f"{verdicts.weakest(same, model)}: {same}; {model}"
