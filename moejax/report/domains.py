"""Which expert answers to which kind of text: shares against what independence would give."""

import dataclasses

import numpy as np

from moejax.report import routing
from moejax.report.read import Run
from moejax.report.style import Plot

ROWS = 24  # domains with a row of their own, the largest; the others are one row
TOKENS = 8  # for each expert, that a domain needs for a row: fewer show chance, not routing
ABOUT = (
  "How much more often (blue) or less often (orange) a domain's tokens go to an expert than all"
  " tokens do. Experts are in the order of the domain that they prefer."
)


@dataclasses.dataclass(frozen=True)
class Domains:
  labels: list[str]
  token_Y: np.ndarray
  loss_Y: np.ndarray
  share_YU: dict[str, np.ndarray]  # per layer: share of the label's choices that id got


def of(run: Run) -> Domains | None:
  """The newest domains line, small domains joined; None without one that can be read."""
  rows = run.kind("domains")
  row = rows[-1] if rows else {}
  labels, token_Y = list(row.get("labels") or []), np.array(row.get("tokens") or [], float)
  loss_Y = np.array(row.get("loss") or [np.nan] * len(labels), float)
  if not labels or not len(labels) == len(token_Y) == len(loss_Y) or not token_Y.sum():
    return None
  tables = {name: np.array(t, float) for name, t in sorted((row.get("layers") or {}).items())}
  tables = {name: np.nan_to_num(t) for name, t in tables.items() if len(t) == len(labels)}
  whole = Domains(labels, token_Y, np.nan_to_num(loss_Y), tables)
  there = [int(y) for y in np.argsort(-token_Y, kind="stable") if token_Y[y] > 0]
  least = TOKENS * max((table.shape[1] for table in tables.values()), default=0)
  count = min(ROWS, max(1, sum(token_Y[y] >= least for y in there)))
  return _joined(whole, there[:count], there[count:])


def lift(token_Y, share_YU):
  """P(expert | domain) / P(expert): 1 where the domain makes no difference.

  >>> lift(np.array([1.0, 1.0]), np.array([[0.75, 0.25], [0.25, 0.75]])).tolist()
  [[1.5, 0.5], [0.5, 1.5]]
  """
  mean_U = token_Y / token_Y.sum() @ share_YU
  return share_YU / np.maximum(mean_U, 1e-12)[None]


def information(count_YU) -> float:
  """Mutual information of what a table counts, in bits: here, of text's domain and its expert.

  >>> information(np.eye(2)), information(np.ones((2, 2)))
  (1.0, 0.0)
  """
  joint_YU = count_YU / count_YU.sum()
  apart_YU = joint_YU.sum(1, keepdims=True) * joint_YU.sum(0, keepdims=True)
  seen_YU = joint_YU > 0
  return float(np.sum(joint_YU[seen_YU] * np.log2(joint_YU[seen_YU] / apart_YU[seen_YU])))


def shuffled(token_Y, share_YU, draws: int = 20) -> float:
  """The information that chance alone would show: every domain's tokens routed as the mean.

  >>> shuffled(np.array([1e6, 1e6]), np.eye(2)) < 1e-4
  True
  """
  rng = np.random.default_rng(0)
  mean_U = token_Y / token_Y.sum() @ share_YU
  mean_U, count_Y = mean_U / mean_U.sum(), token_Y.astype(int)
  return float(np.mean([information(rng.multinomial(count_Y, mean_U)) for _ in range(draws)]))


def maps(run: Run) -> list[Plot]:
  """Per layer: domains by experts, experts in the order of the domain that they prefer."""
  found = of(run)
  if not found or len(found.labels) < 2:
    return []
  plots = []
  for layer in routing.some(list(found.share_YU), routing.SHOWN):
    ratio_YU = lift(found.token_Y, found.share_YU[layer])
    order_U = np.lexsort((-ratio_YU.max(0), ratio_YU.argmax(0)))
    title = f"Experts by domain, {routing.label(layer)}"
    names, ids = [name[:22] for name in found.labels], [str(u) for u in order_U]
    plots.append(routing.heat(title, ratio_YU[:, order_U], names, ids, f"domains_{layer}"))
  return plots


def table(run: Run) -> tuple[list[str], list[list]]:
  """(head, rows): per domain its tokens, its loss and the expert that stands out for it."""
  found = of(run)
  if not found:
    return [], []
  head = ["domain", "tokens", "loss, nats per token", "expert that stands out"]
  rows = []
  for y, name in enumerate(found.labels):
    best = (0.0, "")
    for layer, share_YU in found.share_YU.items():
      ratio_U = lift(found.token_Y, share_YU)[y]
      u = int(ratio_U.argmax())
      best = max(best, (ratio_U[u], f"{routing.label(layer)}, expert {u}: {ratio_U[u]:.1f}×"))
    rows.append([name, f"{found.token_Y[y]:,.0f}", f"{found.loss_Y[y]:.3f}", best[1]])
  return head, rows


def specialisation(run: Run) -> tuple[list[str], list[list]]:
  """(head, rows): per layer the mutual information, beside what chance alone would show."""
  found = of(run)
  if not found or len(found.labels) < 2 or not found.share_YU:
    return [], []
  head = ["layer", "mutual information, bits", "labels shuffled over tokens, bits"]
  counted = lambda t: information(found.token_Y[:, None] * t)
  measure = lambda t: (counted(t), shuffled(found.token_Y, t))
  values = {layer: measure(t) for layer, t in found.share_YU.items()}
  return head, [[routing.label(n), f"{a:.4f}", f"{b:.4f}"] for n, (a, b) in values.items()]


def _joined(d: Domains, keep: list[int], rest: list[int]) -> Domains:
  """The domains `keep` in that order, then `rest` as one, weighted by tokens."""
  groups = [[y] for y in keep] + ([rest] if rest else [])
  names = [d.labels[y] for y in keep] + ([_others(len(rest))] if rest else [])
  weight_GY = np.zeros((len(groups), len(d.labels)))
  for g, members in enumerate(groups):
    weight_GY[g, members] = d.token_Y[members] / d.token_Y[members].sum()
  token_G = np.array([d.token_Y[members].sum() for members in groups])
  tables = {layer: weight_GY @ t for layer, t in d.share_YU.items()}
  return Domains(names, token_G, weight_GY @ d.loss_Y, tables)


def _others(count: int) -> str:
  return "1 other" if count == 1 else f"{count} others"
