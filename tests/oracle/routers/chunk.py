"""Row by row, chunk by chunk: the mean of what speaks for it, then the k most probable."""

import numpy as np

from moejax.routers.chunk import Config
from oracle import best, linear_logits, softmax

CASES = (Config(), Config(k=3, renormalise=False), Config(k=1, chunk=1, pool="first"))


def logits(variables, inputs, cfg):
  own_NU, T = linear_logits(variables, inputs), inputs.seq_len
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
      columns = [variables["params"][name] for name in ("gate_DE", "gate_DZ")
                 if name in variables["params"]]  # fmt: skip
      out_NU[n] = first_D @ np.concatenate(columns, axis=1)
  return out_NU


def route(logit_NU, inputs, cfg):
  weight_NU = np.zeros(logit_NU.shape)
  for n, logit_U in enumerate(logit_NU):
    if inputs.valid_N[n] and inputs.knobs["k_active"] > 0:
      chosen = best(logit_U, cfg.k)[: inputs.knobs["k_active"]]
      gates = softmax(logit_U)[chosen]
      weight_NU[n, chosen] = gates / gates.sum() if cfg.renormalise else gates
  return weight_NU
