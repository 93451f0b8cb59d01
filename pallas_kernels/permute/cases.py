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
