"""How many chunks a dispatch should have: measured costs, a model of three resources, and a search.

Paper:  Pan et al. 2025 (FSMoE), arXiv:2501.10714: linear costs fitted while a run goes on, and
        numbers of chunks chosen apart for the forward and the backward pass, and the sum over
        devices of other gradients cut in pieces that fill the gaps of the links.
Differs from the paper: chunks are tried one by one instead of by a continuous solver; pieces go
        into gaps as they come, and what is left is summed at the end instead of where a search by
        evolution puts it.

A chunk passes five tasks: all-to-all between nodes, all-gather inside a node, expert,
reduce-scatter inside, all-to-all back. Links between nodes, links inside them and the arithmetic
are one resource each, which does one task at a time. Times are in seconds, sizes in bytes or FLOPs.
"""

import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

MOST = 16  # chunks that are tried


class Cost(typing.NamedTuple):
  """Seconds of a task as a line: what each call costs, and each byte or FLOP."""

  alpha: float
  beta: float

  def seconds(self, size: float, chunks: int = 1) -> float:
    """One chunk of so many."""
    return self.alpha + size / chunks * self.beta


class Costs(typing.NamedTuple):
  """Of the tasks of a layer."""

  all_to_all: Cost
  all_gather: Cost
  expert: Cost
  reduce_scatter: Cost


class Sizes(typing.NamedTuple):
  """Of a layer: bytes of its exchanges on one device, FLOPs of its experts."""

  all_to_all: float
  all_gather: float
  expert: float
  reduce_scatter: float


def fit(sizes, seconds) -> tuple[Cost, float]:
  """The line through measurements by least squares, and R squared.

  >>> cost, r2 = fit([1e3, 2e3, 4e3], [3e-6, 4e-6, 6e-6])
  >>> round(cost.alpha * 1e6, 6), round(cost.beta * 1e9, 6), round(r2, 6)
  (2.0, 1.0, 1.0)
  """
  x_S, t_S = np.asarray(sizes, float), np.asarray(seconds, float)
  beta, alpha = np.polyfit(x_S, t_S, 1)
  left = t_S - alpha - beta * x_S
  spread = ((t_S - t_S.mean()) ** 2).sum()
  return Cost(float(alpha), float(beta)), float(1 - (left**2).sum() / spread) if spread else 1.0


def simulate(chunks: int, a: float, g: float, e: float, s: float) -> float:
  """The end of the last chunk, whose tasks take a (both all-to-alls), g, e and s each.

  All ways there come before any way back, and of two tasks that could start inside a node at once
  the reduce-scatter does.

  >>> simulate(1, 1, 2, 3, 4), simulate(2, 1, 0, 10, 0)
  (11, 22)
  """
  return _ways_back(chunks, a, g, e, s)[-1][1]


def gaps(chunks: int, a: float, g: float, e: float, s: float) -> list[float]:
  """Seconds of each pause of the links between nodes while the chunks pass.

  >>> gaps(1, 1, 2, 3, 4), gaps(2, 1, 0, 10, 0), gaps(4, 1, 0, 0, 0)
  ([9], [9, 9], [])
  """
  end, out = chunks * a, []
  for start, done in _ways_back(chunks, a, g, e, s):
    out += [start - end] if start > end else []
    end = done
  return out


def _ways_back(chunks, a, g, e, s) -> list[tuple[float, float]]:
  """(start, end) of the way back of each chunk."""
  gathers = scatters = 0
  inner = computed = 0.0
  done, ready = [], []  # ends of experts, of reduce-scatters
  while scatters < chunks:
    starts = []
    if scatters < len(done):
      starts.append((max(inner, done[scatters]), 0))
    if gathers < chunks:
      starts.append((max(inner, (gathers + 1) * a), 1))
    start, is_gather = min(starts)
    if is_gather:
      inner, gathers = start + g, gathers + 1
      computed = max(computed, inner) + e
      done.append(computed)
    else:
      inner, scatters = start + s, scatters + 1
      ready.append(inner)
  back, ways = chunks * a, []
  for end in ready:
    start = max(back, end)
    back = start + a
    ways.append((start, back))
  return ways


def bound(chunks: int, a: float, g: float, e: float, s: float) -> float:
  """What no order can beat: each resource busy all the time between the first and the last task."""
  r = chunks
  return max(2 * r * a, 2 * a + g + e + s, 2 * a + g + r * e + s, 2 * a + r * (g + s))


def times(costs: Costs, sizes: Sizes, chunks: int) -> tuple[float, float, float, float]:
  """(a, g, e, s) of one of so many chunks."""
  a, g, e, s = (cost.seconds(size, chunks) for cost, size in zip(costs, sizes, strict=True))
  return a, g, e, s


def best(costs: Costs, sizes: Sizes, most: int = MOST) -> int:
  """The number of chunks that ends first; the smaller of equals."""
  return min(range(1, most + 1), key=lambda r: (simulate(r, *times(costs, sizes, r)), r))


def both(costs: Costs, sizes: Sizes, most: int = MOST) -> tuple[int, int]:
  """Chunks of the forward and of the backward pass, in which experts have twice the work."""
  return best(costs, sizes, most), best(costs, sizes._replace(expert=2 * sizes.expert), most)


def partition(gradients, pauses, cost: Cost) -> tuple[list[float], float]:
  """(bytes that go into the pauses of each layer, bytes that are left for the end).

  Both lists are in the order of the backward pass: bytes of other gradients that are there before
  a layer, and its gaps(). A piece in a pause costs what a call of its own does; a pause too short
  for any takes none. To fill each as soon as bytes are there leaves the fewest for the end.

  >>> partition([0.0, 6.0, 6.0], [[9.0], [3.0, 1.0], [5.0]], Cost(1.0, 1.0))
  ([0.0, 2.0, 4.0], 6.0)
  """
  waiting, taken = 0.0, []
  for come, layer in zip(gradients, pauses, strict=True):
    waiting += come
    room = sum(max(0.0, (pause - cost.alpha) / cost.beta) for pause in layer)
    taken.append(min(waiting, room))
    waiting -= taken[-1]
  return taken, waiting


class Search:
  """Which of some candidates is fastest, found while a run goes on: one entry for each load.

  Tutel's table: a load is a bucket of whatever decides (tokens, capacity factor). Every candidate
  is tried `tries` times, then the one with the least median stays.

  >>> search = Search(candidates=(1, 2), tries=1)
  >>> for _ in range(4):
  ...   r = search.choose("busy")
  ...   search.record("busy", r, {1: 5.0, 2: 3.0}[r])
  >>> search.choose("busy"), search.choose("idle")
  (2, 1)
  """

  def __init__(self, candidates: tuple, tries: int = 3):
    self.candidates, self.tries = candidates, tries
    self.seen: dict = {}

  def choose(self, load):
    """What to run next under this load."""
    seen = self.seen.setdefault(load, {one: [] for one in self.candidates})
    for one, seconds in seen.items():
      if len(seconds) < self.tries:
        return one
    return min(seen, key=lambda one: np.median(seen[one]))

  def record(self, load, candidate, seconds: float) -> None:
    """What it took."""
    self.seen.setdefault(load, {one: [] for one in self.candidates})[candidate].append(seconds)


def profile(mesh, axis: str, sizes=tuple(2**i for i in range(14, 23)), rounds: int = 5) -> dict:
  """kind -> (Cost, R squared) of the collectives over one mesh axis, timed now.

  `sizes` are bytes on one device, of the larger side; each is timed `rounds` times and the least
  time counts.
  """
  n = mesh.shape[axis]
  whole = lambda x: lax.all_gather(x, axis, tiled=True)
  part = lambda x: lax.psum_scatter(x, axis, tiled=True)
  swap = lambda x: lax.all_to_all(x, axis, 0, 0, tiled=True)
  kinds = {"all_to_all": (swap, 1), "all_gather": (whole, n), "reduce_scatter": (part, 1)}
  out = {}
  for kind, (collective, share) in kinds.items():
    # of its result one number, so that nothing but the exchange is timed
    some = lambda x, collective=collective: collective(x)[:1]
    on = jax.shard_map(some, mesh=mesh, in_specs=P(axis), out_specs=P(axis), check_vma=False)
    out[kind] = fit(sizes, [_timed(jax.jit(on), size // share, n, rounds) for size in sizes])
  return out


def _timed(fn, size: int, n: int, rounds: int) -> float:
  """The least of some times of fn on `size` bytes for each of n devices."""
  x = jnp.ones((n * size // 4,), jnp.float32)
  run = fn.lower(x).compile()
  run(x).block_until_ready()
  found = []
  for _ in range(rounds):
    begin = time.perf_counter()
    run(x).block_until_ready()
    found.append(time.perf_counter() - begin)
  return min(found)
