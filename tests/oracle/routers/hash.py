"""Token by token: the k highest of hashes computed in Python's whole numbers."""

import numpy as np

from moejax.routers.hash import Config
from oracle import token_by_token

CASES = (Config(), Config(k=3), Config(k=2, renormalise=False))


def mixed(a):
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    a = (a ^ (a >> shift)) * factor % 2**32
  return a ^ (a >> 16)


def logits(variables, inputs, cfg):
  assert not variables
  ids, rows = inputs.num_experts + len(inputs.virtual), []
  for token in inputs.token_N:
    start = mixed((int(token) + cfg.seed * 0x9E3779B9) % 2**32)
    bits = [mixed((start + (e + 1) * 0x85EBCA77) % 2**32) for e in range(ids)]
    rows.append([(b >> 8) / 2**24 for b in bits])
  return np.array(rows)


def route(logit_NU, inputs, cfg):
  gates = lambda n, chosen: 1 / len(chosen) if cfg.renormalise else 1
  return token_by_token(logit_NU, inputs, cfg.k, gates)
