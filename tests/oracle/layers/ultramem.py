"""Token by token, head by head: keys of R components, their true scores, a part per core."""

import numpy as np

from moejax.layers.table import Config as Table
from moejax.layers.ultramem import Config
from oracle import best
from oracle.layers import halves, rms_norm

CASES = (
  Config(Table(width=6, pre=5), keys=8, k=4, key_width=6, heads=2),
  Config(Table(width=6), keys=8, k=3, key_width=6, rank=3, cores=1),
)


def components(router, x_D, head):
  """S1 and S2 of [n, R]: what each key of a half says to the query."""
  norm = lambda half, query_A: rms_norm(query_A, router[f"scale_query{half}_A"])
  return [
    np.array(
      [
        [rms_norm(key_A, router[f"scale_key{half}_A"]) @ query_A for key_A in key_RA]
        for key_RA in router[f"key{half}_HQRA"][head]
      ]
    )
    for half, query_A in zip("12", halves(router, x_D, head, norm), strict=True)
  ]


def brute(first_QR, second_QR, core_CRR, k):
  """The k slots of highest score among all n * n."""
  n, core_RR = len(first_QR), np.sum(core_CRR, axis=0)
  return best([first_QR[i] @ core_RR @ second_QR[j] for i in range(n) for j in range(n)], k)


def retrieved(first_QR, second_QR, core_CRR, u_R, v_R, k):
  """The same among the pairs of the k highest of each half along u and v."""
  n, core_RR = len(first_QR), np.sum(core_CRR, axis=0)
  rows, columns = best(first_QR @ u_R, k), best(second_QR @ v_R, k)
  pairs = [(i, j) for i in rows for j in columns]
  chosen = best([first_QR[i] @ core_RR @ second_QR[j] for i, j in pairs], k)
  return [pairs[c][0] * n + pairs[c][1] for c in chosen]


def output(params, state, x_ND, cfg):
  y_ND, router = np.zeros(x_ND.shape), params["router"]
  core_CRR = np.asarray(router["core_CRR"])
  for n, x_D in enumerate(x_ND):
    total_F = np.zeros(cfg.table.width)
    for head in range(cfg.heads):
      first_QR, second_QR = components(router, x_D, head)
      at = state["router"]["u_R"], state["router"]["v_R"]
      for slot in retrieved(first_QR, second_QR, core_CRR, *at, cfg.k):
        i, j = divmod(slot, cfg.keys)
        unit = params["pre_PR"][slot] @ (x_D @ params["in_DR"]) if cfg.table.pre else 1.0
        parts = np.split(params["value_PF"][slot], cfg.cores)
        scores = [first_QR[i] @ core_RR @ second_QR[j] for core_RR in core_CRR]
        total_F += unit * np.concatenate([s * p for s, p in zip(scores, parts, strict=True)])
    y_ND[n] = total_F @ params["out_FD"]
  return y_ND
