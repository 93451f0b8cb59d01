"""Named cases of the expert FFN: which experts the tokens choose, in sizes that divide nothing."""

import typing

import numpy as np


class Case(typing.NamedTuple):
  """N tokens with K choices of E experts; `choose` maps token numbers to them, -1 for none."""

  choose: typing.Callable
  N: int = 29
  K: int = 2
  E: int = 3
  D: int = 5
  F: int = 7


TEST = {  # the batch has 24 slots per expert: none, some and most rows overflow it
  "spread": Case(lambda n: (n % 3, (n + 1) % 3)),
  "skewed": Case(lambda n: (0 * n + 2, n % 2)),
  "one_hot": Case(lambda n: (0 * n + 1, 0 * n - 1)),
  "holes": Case(lambda n: (np.where(n % 3 == 0, -1, 0), np.where(n % 4 == 0, -1, 2))),
  "nothing": Case(lambda n: (0 * n - 1, 0 * n - 1)),
}


def rows(case: Case):
  """(token_M, row_NK, size_E) as a dropless dispatch orders them; unused choices are last.

  >>> token_M, row_NK, size_E = rows(Case(lambda n: (1 - n,), N=2, K=1, E=2))
  >>> token_M.tolist(), row_NK.tolist(), size_E.tolist()
  ([1, 0], [[1], [0]], [1, 1])
  """
  expert_NK = np.stack(case.choose(np.arange(case.N)), axis=1)
  expert_M = np.where(expert_NK < 0, case.E, expert_NK).ravel()
  order_M = np.argsort(expert_M, kind="stable")
  row_NK = np.argsort(order_M).reshape(case.N, case.K)
  row_NK = np.where(expert_NK < 0, case.N * case.K, row_NK)
  return order_M // case.K, row_NK, np.bincount(expert_M, minlength=case.E + 1)[: case.E]
