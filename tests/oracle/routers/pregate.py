"""Token by token: the k best of logits that are there before any layer, each with an equal part.

The network that computes them has its own loops in tests/unit/routers/test_pregate.py.
"""

from moejax.routers.pregate import Config
from oracle import token_by_token

CASES = (Config(), Config(k=2), Config(gates="one"))


def logits(variables, inputs, cfg):
  return inputs.shared["pregate"]["logit_NU"]


def route(logit_NU, inputs, cfg):
  return token_by_token(logit_NU, inputs, cfg.k, lambda n, chosen: 1 / cfg.k)
