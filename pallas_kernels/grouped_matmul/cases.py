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
  **{f"E{E}_even": Case(8192, 256, 512, E) for E in (8, 32, 128)},
  "E32_zipf": Case(8192, 256, 512, 32, "zipf"),
  "E32_one_hot": Case(8192, 256, 512, 32, "one_hot"),
  "E32_half_used": Case(8192, 256, 512, 32, "half"),
  "mixtral_8x7b/16": Case(2048, 256, 896, 8, "random"),
  "qwen3_30b_a3b/4": Case(8192, 512, 192, 128, "random"),
}


class Published(typing.NamedTuple):
  """The expert layers of a published model: E experts of width F, K of them for a token."""

  D: int
  F: int
  E: int
  K: int


MODELS = {
  "mixtral_8x7b": Published(4096, 14336, 8, 2),
  "olmoe_1b_7b": Published(2048, 1024, 64, 8),
  "qwen3_30b_a3b": Published(2048, 768, 128, 8),
  "qwen3_235b_a22b": Published(4096, 1536, 128, 8),
  "deepseek_v3": Published(7168, 2048, 256, 8),
  "kimi_k2": Published(7168, 2048, 384, 8),
  "sigma_moe_tiny": Published(1536, 768, 96, 1),
}


def of_model(name: str, tokens: int = 16384, down: bool = False, load="zipf") -> Case:
  """The matmul of gate or up projections, or the one down, of a batch of tokens.

  >>> of_model("qwen3_30b_a3b"), of_model("mixtral_8x7b", 512, down=True)[:4]
  (Case(M=131072, D=2048, F=768, E=128, load='zipf'), (1024, 14336, 4096, 8))
  """
  D, F, E, K = MODELS[name]
  return Case(tokens * K, F, D, E, load) if down else Case(tokens * K, D, F, E, load)


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
