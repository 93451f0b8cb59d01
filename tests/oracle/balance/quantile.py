"""Id by id: among counts of needs below edges, where the goal is reached, between two of them."""

import numpy as np

from moejax.balance.quantile import EDGES, Config

CASES = (Config(), Config(0.25, score="softmax"))


def seen(count_U):
  """below_QU: id u has count_U[u] needs below 0 and as many above, evenly over -0.6..0.6."""
  return {"below_QU": np.array([[below(edge, c) for c in count_U] for edge in EDGES], np.float32)}


def below(edge, count):
  needs = np.linspace(0.6 / max(count, 1), 0.6, int(count)) - 1e-6
  return sum(need < edge for need in [*-needs, *needs])


def update(bias_U, count_U, cfg):
  goal, moves = sum(count_U) / len(count_U), []
  for count in count_U:
    below_Q = [below(edge, count) for edge in EDGES]
    if goal > count:
      at = next((q for q in range(len(EDGES)) if below_Q[q] >= goal), len(EDGES) - 1)
    else:
      at = next(q for q in range(len(EDGES)) if below_Q[q] > goal)
    part = (goal - below_Q[at - 1]) / max(below_Q[at] - below_Q[at - 1], 1)
    way = EDGES[at - 1] + min(max(part, 0), 1) * (EDGES[at] - EDGES[at - 1])
    moves.append(0.0 if goal == count else way)
  drift = sum(moves) / len(moves)
  return np.array([b + cfg.speed * (m - drift) for b, m in zip(bias_U, moves, strict=True)])
