"""Named cases of routing: rules and sizes of published models, and logits that are awkward."""

import typing

import numpy as np

from pallas_kernels.routing.rule import Rule


class Case(typing.NamedTuple):
  """E experts, chosen by a rule, by tokens whose logits are of a kind (see `logits`)."""

  E: int
  rule: Rule
  bias: bool = False


DEEPSEEK_V3 = Rule(8, "sigmoid", groups=8, keep=4, best=2, scale=2.5)
MODELS = {
  "mixtral_8x7b": Case(8, Rule(2)),
  "olmoe_1b_7b": Case(64, Rule(8, renormalise=False)),
  "qwen3_30b_a3b": Case(128, Rule(8)),
  "deepseek_v3": Case(256, DEEPSEEK_V3, bias=True),
  "kimi_k2": Case(384, Rule(8, "sigmoid", scale=2.827), bias=True),
  "sigma_moe_tiny": Case(96, Rule(1)),
  "wide": Case(1024, Rule(16, "none")),
}
TEST = {  # the same rules on few experts, in sizes that divide nothing
  "softmax": Case(13, Rule(3)),
  "plain_softmax": Case(13, Rule(3, renormalise=False, scale=0.5)),
  "sigmoid_bias": Case(13, Rule(4, "sigmoid", scale=2.5), bias=True),
  "groups": Case(24, Rule(4, "sigmoid", groups=4, keep=2, best=2), bias=True),
  "logits": Case(130, Rule(5, "none", renormalise=False)),
  "one": Case(5, Rule(1)),
  "all": Case(4, Rule(4)),
}
KINDS = ("even", "zipf", "one_hot", "ties", "equal", "padding")


def arguments(case: Case, kind: str, N: int, seed: int = 0):
  """(logit_NE, bias_E, valid_N) of a kind; where tokens are padding, their logits are NaN.

  >>> logit_NE, bias_E, valid_N = arguments(Case(2, Rule(1)), "equal", 3)
  >>> logit_NE.tolist(), bias_E.tolist(), valid_N.tolist()
  ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], [True, True, True])
  """
  rng, E = np.random.default_rng(seed), case.E
  logit_NE = rng.normal(size=(N, E))
  valid_N = np.ones(N, bool)
  if kind == "zipf":
    logit_NE -= np.log(1 + np.arange(E))
  elif kind == "one_hot":
    logit_NE[:, E // 2] += 9
  elif kind == "ties":
    logit_NE = np.round(logit_NE)
  elif kind == "equal":
    logit_NE = np.zeros((N, E))
  elif kind == "padding":
    valid_N = rng.random(N) < 0.7
    logit_NE[~valid_N] = np.nan
  bias_E = np.round(rng.normal(size=E), 1) if case.bias else np.zeros(E)
  return logit_NE.astype(np.float32), bias_E.astype(np.float32), valid_N
