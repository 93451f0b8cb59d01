"""Named cases of the way from tokens to rows and back: which choices are used."""

import typing

import numpy as np


class Case(typing.NamedTuple):
  """N tokens of width D with K choices, of which a part is used."""

  N: int
  K: int
  D: int
  used: float = 1.0


TEST = {  # odd numbers, and widths that two bfloat16 share words of
  "all": Case(29, 3, 5),
  "holes": Case(29, 3, 5, 0.6),
  "one": Case(130, 1, 256),
  "packed": Case(41, 2, 512, 0.7),
  "nothing": Case(9, 2, 5, 0.0),
}


def tables(case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(token_M, row_NK): used choices in random order, the rows that nobody has are last.

  >>> token_M, row_NK = tables(Case(2, 2, 1, 0.0))
  >>> token_M.tolist(), row_NK.tolist()
  ([-1, -1, -1, -1], [[4, 4], [4, 4]])
  """
  rng, M = np.random.default_rng(seed), case.N * case.K
  used_M = rng.random(M) < case.used
  choices = rng.permutation(np.flatnonzero(used_M))
  token_M, row_M = np.full(M, -1, np.int32), np.full(M, M, np.int32)
  token_M[: len(choices)] = choices // case.K
  row_M[choices] = np.arange(len(choices))
  return token_M, row_M.reshape(case.N, case.K)


def sorted_tables(N: int, K: int, size_E, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(token_M, row_NK) of N tokens with K choices each, so that the experts have so many rows.

  >>> token_M, row_NK = sorted_tables(2, 2, np.array([1, 3]))
  >>> sorted(row_NK.ravel().tolist()), np.bincount(token_M).tolist()
  ([0, 1, 2, 3], [2, 2])
  """
  expert_M = np.repeat(np.arange(len(size_E)), size_E)
  expert_M = np.random.default_rng(seed).permutation(expert_M)
  order_M = np.argsort(expert_M, kind="stable")
  row_M = np.empty_like(order_M)
  row_M[order_M] = np.arange(N * K)
  return (order_M // K).astype(np.int32), row_M.reshape(N, K).astype(np.int32)
