"""What waiting in slower memory costs: sections that take turns in few slots, caches of experts.

Paper:  Shen et al. 2022 (SE-MoE), arXiv:2205.10034 (ring memory; a cache of sparse states that
        counts uses, with counts that decay).
        Differs from the paper: how an entry is evicted is filled in (the fewest uses, the oldest
        among equals).
"""

import collections
import random


def ring(
  sections: int, slots: int, work: float, copy: float, passes: int = 3, engines: int = 1
) -> float:
  """Seconds of some passes through all sections, of which `slots` have a place at a time.

  Section i works in slot i mod slots; when it is done, its slot takes the section that comes
  `slots` later, as soon as one of the engines that copy is free. Sections go round.

  >>> ring(4, 4, work=1.0, copy=9.0, passes=2), ring(4, 2, work=2.0, copy=1.0, passes=2)
  (8.0, 16.0)
  >>> ring(4, 1, work=2.0, copy=1.0, passes=1)  # nothing hides
  11.0
  """
  count = sections * passes
  ready = [0.0] * slots + [float("inf")] * (count - slots)  # the first ones are there
  free, now = [0.0] * engines, 0.0
  for i in range(count):
    now = max(now, ready[i]) + work
    if slots < sections and i + slots < count:
      engine = min(range(engines), key=lambda e: free[e])
      free[engine] = max(free[engine], now) + copy
      ready[i + slots] = free[engine]
    elif i + slots < count:
      ready[i + slots] = now  # every section has a slot of its own
  return now


def drifting(steps: int, experts: int, skew: float, every: int, seed: int = 0) -> list[int]:
  """Experts by Zipf's law with exponent `skew`; every so many steps two of them swap ranks."""
  draw = random.Random(seed)
  order = draw.sample(range(experts), experts)
  weights = [(rank + 1) ** -skew for rank in range(experts)]
  uses = []
  for step in range(steps):
    if step % every == 0:
      a, b = draw.randrange(experts), draw.randrange(experts)
      order[a], order[b] = order[b], order[a]
    uses.append(order[draw.choices(range(experts), weights)[0]])
  return uses


def lru(uses: list[int], room: int) -> float:
  """Hit rate of a cache that evicts what was used longest ago.

  >>> lru([1, 2, 1, 3, 2], room=2)
  0.2
  """
  held: collections.OrderedDict[int, None] = collections.OrderedDict()
  hits = 0
  for one in uses:
    hits += one in held
    held[one] = None
    held.move_to_end(one)
    if len(held) > room:
      held.popitem(last=False)
  return hits / len(uses)


def lfu(uses: list[int], room: int, decay: float = 0.5, period: int = 256) -> float:
  """Hit rate of a cache that evicts what was used least; counts shrink by `decay` every period.

  >>> lfu([1, 1, 2, 3, 1], room=2)
  0.4
  """
  held: collections.OrderedDict[int, None] = collections.OrderedDict()
  count: collections.defaultdict[int, float] = collections.defaultdict(float)
  hits = 0
  for step, one in enumerate(uses):
    if step and step % period == 0:
      for key in count:
        count[key] *= decay
    count[one] += 1
    hits += one in held
    held[one] = None
    held.move_to_end(one)
    if len(held) > room:
      del held[min((key for key in held if key != one), key=lambda key: count[key])]
  return hits / len(uses)
