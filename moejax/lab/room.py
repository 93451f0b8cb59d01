"""How much room buffers of an expert-parallel dispatch need, so that what does not fit is rare.

From recorded choices and a mesh come needs: for each step and layer the rows that the fullest
device receives, over the mean (`room` of the dispatch `ragged`), the same where a token comes to a
node once and then to its experts, the larger of both steps (`room` of `dedup`), or the choices of
the fullest expert in a group of tokens, over the even load (`factor` of the edit `capacity`). A
promise P(need > room) < eps is kept by an order statistic of the needs, with a confidence of 95 per
cent and no assumption but that steps to come are like those recorded. What comes beyond it costs
time in `ragged` and `dedup`, which then run a program with room for all, and choices in `capacity`.
`python -m moejax room FILE --mesh=data:2,expert:4 [--inner=2] [--groups=8] [--eps=0.01]`
"""

import itertools
import math

import numpy as np

from moejax.core import axes
from moejax.core.plugin import Wrong
from moejax.dispatch import dedup
from moejax.lab import plain
from moejax.trace import format as formats
from moejax.train import mesh as meshes

CONFIDENCE = 0.95


def received(expert_NK: np.ndarray, sizes: dict[str, int], experts: int) -> np.ndarray:
  """Rows that every device receives in one layer, in the order of the token axes of the mesh.

  >>> received(np.array([[0, 1], [0, 3], [0, -1], [0, 1]]), {"expert": 2}, experts=4).tolist()
  [6, 1]
  """
  cut, owners = _cut(expert_NK, sizes, experts)
  expert_Sm = expert_NK.reshape(math.prod(cut.values()), -1)
  real_Sm = (expert_Sm >= 0) & (expert_Sm < experts)
  owner_Sm = np.where(real_Sm, expert_Sm // (experts // owners), owners)
  sent_SO = np.stack([(owner_Sm == owner).sum(1) for owner in range(owners)], 1)
  sent = sent_SO.reshape(*cut.values(), owners)
  if "expert" not in cut:
    return sent.ravel()
  at = list(cut).index("expert")
  return np.moveaxis(sent.sum(at), -1, at).ravel()  # summed over sources, one for each owner


def landed(expert_NK: np.ndarray, sizes: dict[str, int], experts: int, inner: int) -> np.ndarray:
  """Tokens that every device receives for its node of `inner` owners, each token once.

  Those of a device come from the devices with its place in every node: [place, rest, node], where
  the rest are the places on the other token axes.

  >>> landed(np.array([[0, 1], [0, 3], [3, -1], [0, 1]]), {"expert": 4}, 4, inner=2)[:, 0].tolist()
  [[1, 1], [2, 1]]
  """
  cut, owners = _cut(expert_NK, sizes, experts)
  if owners % inner:
    raise Wrong(f"room: {owners} owners do not form nodes of {inner}; give a divisor as --inner.")
  nodes = owners // inner
  real = (expert_NK >= 0) & (expert_NK < experts)
  node_NK = np.where(real, expert_NK // (experts // nodes), nodes)
  need_NI = (node_NK[:, :, None] == np.arange(nodes)).any(1)
  need = need_NI.reshape(*cut.values(), -1, nodes)
  need = np.moveaxis(need, list(cut).index("expert"), 0) if "expert" in cut else need[None]
  return need.reshape(nodes, inner, -1, *need.shape[-2:]).sum((0, 3))


def _cut(expert_NK, sizes, experts) -> tuple[dict, int]:
  """(the axes that cut tokens, with their sizes; the parts into which they cut experts)."""
  cut = {name: sizes[name] for name in axes.TOKENS if name in sizes}
  shards, owners = math.prod(cut.values()), cut.get("expert", 1)
  if len(expert_NK) % shards or experts % owners:
    raise Wrong(
      f"room: {len(expert_NK)} tokens and {experts} experts cannot be cut over {shards} devices"
      f" with {owners} parts of the experts; take another mesh."
    )
  return cut, owners


def of_devices(expert_NK: np.ndarray, sizes: dict[str, int], experts: int) -> float:
  """Rows of the fullest device over those that a device sends: what `room` must be at least."""
  shards = math.prod(sizes.get(name, 1) for name in axes.TOKENS)
  return float(received(expert_NK, sizes, experts).max() / (expert_NK.size / shards))


def of_nodes(expert_NK: np.ndarray, sizes: dict[str, int], experts: int, inner: int) -> float:
  """What the `room` of `dedup` must be at least: in the step to nodes, and in the one inside."""
  shards, K = math.prod(sizes.get(name, 1) for name in axes.TOKENS), expert_NK.shape[1]
  come = landed(expert_NK, sizes, experts, inner)
  even = len(expert_NK) / shards * dedup.nodes_of(experts, K, come.shape[-1])
  return max(float(come.max() / even), of_devices(expert_NK, sizes, experts))


def of_groups(expert_NK: np.ndarray, groups: int, experts: int) -> float:
  """Choices of the fullest expert of a group over the even load: what `factor` must be at least."""
  if len(expert_NK) % groups:
    raise Wrong(f"room: {len(expert_NK)} tokens cannot form {groups} groups; give a divisor.")
  expert_Gm = expert_NK.reshape(groups, -1)
  load_GE = np.stack([(expert_Gm == e).sum(1) for e in range(experts)], 1)
  return float(load_GE.max() * experts / expert_Gm.shape[1])


def promised(needs, eps: float) -> float | None:
  """The least room that is enough with probability 1 - eps; None if there are too few needs.

  Of S needs the m largest may lie beyond it if so few would come with a probability of at most
  0.05 where each did with probability eps.

  >>> promised(range(100), 0.1), promised(range(20), 0.1)
  (95.0, None)
  """
  needs = np.sort(np.asarray(needs, float))
  beyond, tail = 0, 0.0
  while beyond < len(needs):
    tail += _just(beyond, len(needs), eps)
    if tail > 1 - CONFIDENCE:
      break
    beyond += 1
  return None if beyond == 0 else float(needs[len(needs) - beyond])


def _just(m: int, chances: int, eps: float) -> float:
  """The probability of exactly m of so many chances."""
  log = math.lgamma(chances + 1) - math.lgamma(m + 1) - math.lgamma(chances - m + 1)
  return math.exp(log + m * math.log(eps) + (chances - m) * math.log1p(-eps))


def enough(eps: float) -> int:
  """The fewest needs S on which a promise can rest: (1 - eps) ** S is at most 0.05.

  >>> enough(0.01), enough(0.1)
  (299, 29)
  """
  return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - eps))


def ladder(needs, top: float, rungs: int = 2, steps: int = 24) -> tuple[float, ...]:
  """Rooms of least mean size that end with `top`: rows are spent on the rung that is taken.

  >>> ladder([1.0] * 9 + [2.0], top=2.0)
  (1.0, 2.0)
  """
  needs = np.asarray(needs, float)
  some = sorted({float(v) for v in np.quantile(needs, np.linspace(0, 1, steps), method="higher")})
  below = [max(value, 1.0) for value in some if value < top]
  choices = [*itertools.combinations(sorted(set(below)), rungs - 1), ()]
  choices += itertools.combinations(sorted(set(below)), 1) if rungs > 2 else ()

  def mean(rooms):
    at = np.searchsorted((*rooms, top), needs)
    return float(np.append((*rooms, top), top)[at].mean())

  return (*min(choices, key=lambda rooms: (mean(rooms), len(rooms))), top)


def luck(beyond: int, chances: int, eps: float) -> float:
  """The probability of so many or more beyond a room, if the promise were kept just so.

  >>> luck(0, 100, 0.01), luck(8, 100, 0.01) < 1e-4
  (1.0, True)
  """
  return max(0.0, 1.0 - sum(_just(m, chances, eps) for m in range(beyond)))


def needs_of(trace: formats.Trace, need) -> np.ndarray:
  """[steps, layers] of need(expert_NK)."""
  if not trace.blocks:
    raise Wrong(trace.damage or f"trace {trace.path} has no step; record it again.")
  return np.array([[need(layer["expert_NK"]) for layer in b.layers.values()] for b in trace.blocks])


def report(
  path, mesh: str, eps: float = 0.01, rungs: int = 2, groups: int = 0, experts: int = 0, inner=0
):
  """The text of the verb: rooms from the first half of a trace, kept or not in the second."""
  if not 0 < eps < 1 or rungs < 1:
    raise Wrong(f"room: eps {eps} and {rungs} rungs cannot be; use 0 < eps < 1 and at least 1.")
  trace, sizes = formats.read(path), meshes.parse(mesh)
  experts = experts or max(layer["U"] for layer in trace.head.layers.values())
  kinds = {"room of ragged": lambda expert_NK: of_devices(expert_NK, sizes, experts)}
  if inner:
    kinds["room of dedup"] = lambda expert_NK: of_nodes(expert_NK, sizes, experts, inner)
  if groups:
    kinds["factor of capacity"] = lambda expert_NK: of_groups(expert_NK, groups, experts)
  rows, lines = [], []
  for kind, need in kinds.items():
    needs = needs_of(trace, need)
    half = len(needs) // 2
    seen, held = needs[: max(half, 1)].ravel(), needs[half:].ravel()
    top = promised(seen, eps)
    if top is None:
      lines.append(
        f"{kind}: {seen.size} needs (steps times layers) are too few for eps {eps}; record at least"
        f" {2 * enough(eps)}, or promise less. The largest was {seen.max():.3f}."
      )
      continue
    top = max(math.ceil(top * 100) / 100, 1.0)
    beyond = int((held > top).sum())
    rooms = ladder(seen, top, rungs) if kind == "room of ragged" else (top,)
    chance = luck(beyond, held.size, eps)
    quantiles = [float(q) for q in np.quantile(needs, (0.5, 0.9, 0.99, 1.0))]
    rows.append([kind, *quantiles, top, f"{beyond} of {held.size}", beyond / held.size, chance])
    field = "dispatch.room" if kind.startswith("room") else "edits[0].factor"
    words = ",".join(f"{room:.2f}" for room in rooms)
    words = f"'({words})'" if len(rooms) > 1 else words
    lines.append(f"--config.model.moe.{field}={words}")
  head = ["what", "median", "90 %", "99 %", "most", f"for {eps}", "beyond", "share", "chance"]
  table = plain.table(head, rows) + "\n\n" if rows else ""
  return table + "\n".join(lines)
