"""Row by row, chunk by chunk: the mean of what speaks for it, then the k most probable."""

import numpy as np

from moejax.routers.chunk import Config
from oracle import columns, linear_logits, most_probable

CASES = (Config(), Config(k=3, renormalise=False), Config(k=1, chunk=1, pool="first"))


def logits(variables, inputs, cfg):
  own_NU, T = linear_logits(variables, inputs, cfg), inputs.seq_len
  out_NU = np.zeros(own_NU.shape)
  for n in range(len(own_NU)):
    row, chunk = n - n % T, n % T // cfg.chunk
    if cfg.pool == "first":
      spokesmen = [row + chunk * cfg.chunk]
    else:
      first = row + (chunk - (cfg.pool == "previous")) * cfg.chunk
      spokesmen = [m for m in range(first, min(first + cfg.chunk, row + T)) if m >= row]
      spokesmen = [m for m in spokesmen if inputs.valid_N[m]]
    if spokesmen:
      out_NU[n] = np.mean(own_NU[spokesmen], axis=0)
    else:
      first_D = np.asarray(variables["params"]["first_D"], np.float64)
      out_NU[n] = first_D @ columns(variables["params"], "gate_D")
  return out_NU


def route(logit_NU, inputs, cfg):
  return most_probable(logit_NU, inputs, cfg.k, cfg.renormalise)
