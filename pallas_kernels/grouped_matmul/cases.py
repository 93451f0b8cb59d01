"""Named cases of the grouped matmul: small ones to test, shapes of real models to measure."""

import typing

import numpy as np


class Case(typing.NamedTuple):
  """M rows over E experts; `load` names how they are spread (see `sizes`)."""

  M: int
  D: int
  F: int
  E: int
  load: str | tuple = "even"


TEST = {  # odd numbers: nothing divides anything
  "even": Case(23, 5, 7, 4),
  "skewed": Case(23, 5, 7, 4, (20, 1, 1, 1)),
  "empty_experts": Case(23, 5, 7, 4, (0, 11, 0, 12)),
  "last_only": Case(23, 5, 7, 4, (0, 0, 0, 23)),
  "first_only": Case(23, 5, 7, 4, (23, 0, 0, 0)),
  "rows_left_over": Case(23, 5, 7, 4, (3, 0, 4, 2)),
  "nothing": Case(23, 5, 7, 4, (0, 0, 0, 0)),
  "whole_windows": Case(23, 5, 7, 4, (4, 8, 1, 8)),
}
BENCH = {  # one amount of work over more and more experts, then other loads
  **{f"E{E}": Case(8192, 256, 512, E, "random") for E in (8, 32, 128, 512)},
  "E32_zipf": Case(8192, 256, 512, 32, "zipf"),
  "E32_one_hot": Case(8192, 256, 512, 32, "one_hot"),
  "E32_half_used": Case(8192, 256, 512, 32, "half"),
  "mixtral_8x7b/16": Case(2048, 256, 896, 8, "random"),
  "qwen3_30b_a3b/4": Case(8192, 512, 192, 128, "random"),
}


def sizes(case: Case) -> np.ndarray:
  """Rows per expert, the same numbers each time.

  >>> sizes(Case(10, 1, 1, 4)).tolist(), sizes(Case(10, 1, 1, 4, "zipf")).tolist()
  ([3, 3, 2, 2], [5, 3, 1, 1])
  """
  M, E = case.M, case.E
  if not isinstance(case.load, str):
    return np.array(case.load, np.int32)
  share_E = {
    "even": np.ones(E),
    "half": np.ones(E),
    "zipf": 1 / np.arange(1, E + 1),
    "one_hot": np.arange(E) == 0,
    "random": np.random.default_rng(0).dirichlet(np.full(E, 8.0)),  # as at the start of training
  }[case.load]
  rows = M // 2 if case.load == "half" else M
  size_E = np.floor(rows * share_E / share_E.sum()).astype(np.int32)
  size_E[: rows - size_E.sum()] += 1
  return size_E
