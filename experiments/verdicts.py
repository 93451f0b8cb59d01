"""How studies judge: a table of runs, and comparisons that respect the spread between seeds."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Table:
  rows: list[dict]  # each with `arm`, `seed` and numbers

  def values(self, arm: str, column: str) -> np.ndarray:
    """One number per seed.

    >>> Table([{"arm": "a", "seed": 0, "loss": 2.0}]).values("a", "loss").tolist()
    [2.0]
    """
    return np.array([row[column] for row in self.rows if row["arm"] == arm], float)

  def summary(self) -> dict:
    """Mean and spread (largest less smallest over seeds) of every number of every arm."""
    out = {}
    for arm in dict.fromkeys(row["arm"] for row in self.rows):
      first = next(row for row in self.rows if row["arm"] == arm)
      columns = [key for key, value in first.items() if key != "seed" and _is_number(value)]
      out[arm] = {
        column: {"mean": float(v.mean()), "spread": float(np.ptp(v))}
        for column in columns
        for v in [self.values(arm, column)]
      }
    return out


def lower(table: Table, column: str, arm: str, than: str) -> str:
  """Whether `arm` is lower than another by more than either spreads over its seeds.

  >>> rows = [{"arm": a, "seed": s, "loss": x + s / 10} for a, x in (("a", 1.), ("b", 2.))
  ...         for s in (0, 1)]
  >>> lower(Table(rows), "loss", "a", than="b")
  'holds: loss a 1.0500 +-0.0500, b 2.0500 +-0.0500 over 2 seeds; gap 1.0000, spread 0.1000'
  """
  a, b = table.values(arm, column), table.values(than, column)
  gap, spread = b.mean() - a.mean(), max(np.ptp(a), np.ptp(b))
  word = "holds" if gap > spread else "fails" if gap < -spread else "unclear"
  if min(len(a), len(b)) < 2:
    word = "unclear"  # one seed has no spread to compare with
  half = [f"{name} {v.mean():.4f} +-{np.ptp(v) / 2:.4f}" for name, v in ((arm, a), (than, b))]
  return (
    f"{word}: {column} {half[0]}, {half[1]} over {len(a)} seeds; gap {gap:.4f}, spread {spread:.4f}"
  )


def close(table: Table, column: str, arms, margin: float) -> str:
  """Whether the worst arm is inside a margin (a share) of the best one with every seed.

  >>> rows = [{"arm": a, "seed": 0, "loss": x} for a, x in (("a", 1.0), ("b", 1.01))]
  >>> close(Table(rows), "loss", ("a", "b"), margin=0.02)
  'holds: best a 1.0000, worst b 1.0100; gap 1.00 % (1.00 to 1.00 over 1 seeds), margin 2 %'
  """
  of = {arm: table.values(arm, column) for arm in arms}
  best, worst = (pick(of, key=lambda arm: of[arm].mean()) for pick in (min, max))
  gap_S = of[worst] / of[best] - 1
  inside = gap_S <= margin
  word = "holds" if inside.all() else "unclear" if inside.any() else "fails"
  return (
    f"{word}: best {best} {of[best].mean():.4f}, worst {worst} {of[worst].mean():.4f}; gap"
    f" {100 * gap_S.mean():.2f} % ({100 * gap_S.min():.2f} to {100 * gap_S.max():.2f} over"
    f" {len(gap_S)} seeds), margin {100 * margin:g} %"
  )


def within(table: Table, column: str, arm: str, of: str, margin: float) -> str:
  """Whether `arm` is at most a margin (a share) above another, spread over seeds granted.

  >>> rows = [{"arm": a, "seed": 0, "loss": x} for a, x in (("a", 1.01), ("b", 1.0))]
  >>> within(Table(rows), "loss", "a", of="b", margin=0.02)
  'holds: loss a +1.00 % of b 1.0000, spread 0.00 %, margin 2 %'
  """
  a, b = table.values(arm, column), table.values(of, column)
  excess, spread = a.mean() / b.mean() - 1, max(np.ptp(a), np.ptp(b)) / b.mean()
  word = "holds" if excess <= margin else "fails" if excess - spread > margin else "unclear"
  return (
    f"{word}: {column} {arm} {100 * excess:+.2f} % of {of} {b.mean():.4f}, spread"
    f" {100 * spread:.2f} %, margin {100 * margin:g} %"
  )


def weakest(*parts: str) -> str:
  """The word for a claim of several parts, from their words or verdicts.

  >>> weakest("holds: a", "unclear: b"), weakest("holds", "holds")
  ('unclear', 'holds')
  """
  words = {part.partition(":")[0] for part in parts}
  return next(word for word in ("fails", "unclear", "holds") if word in words)


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)
