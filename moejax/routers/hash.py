"""Hash routing: the token id alone says which experts work on a token; nothing is learnt.

Paper:  Roller et al. 2021 (Hash Layers), arXiv:2106.04426.
Plan:   TokenPlan.   State: none, and no parameters.   Tokens: independent.
Causal: yes.
Study:  configs/studies/baselines.py
Differs from the paper: the random table is an integer hash of (seed, token id, expert id), so that
        none is stored. A token goes to the experts with its k highest hashes, which are k distinct
        ones; the paper cuts the hidden units into parts for its several hashes instead.

With `counts`, the file of how often each token id occurs, the table is the balanced one: from the
most frequent id on, each goes to the experts with the least load so far. Such a file is written by
numpy.save(path, numpy.bincount(token_ids, minlength=vocab)).
"""

import dataclasses
import functools
import heapq

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.core import routing
from moejax.core.plugin import Wrong


@dataclasses.dataclass(frozen=True)
class Config:
  k: int = 1
  seed: int = 0  # of the table; layers of one seed agree on every token
  counts: str | None = None  # a .npy file with one count per token id; None: the random table
  renormalise: bool = True  # gates of 1 / k; otherwise of 1

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise Wrong(f"hash: seed {self.seed} is not from 0 to {2**32 - 1}.")


def flops(cfg, width: int, ids: int) -> float:
  """Of the router, per token: it multiplies nothing."""
  return 0.0


def hashed(token_N, ids: int, seed: int):
  """A number from [0, 1) for every token id and expert id, the same wherever it is computed.

  >>> [[round(a, 3) for a in row] for row in hashed(jnp.array([7, 7, 8]), 2, seed=0).tolist()]
  [[0.104, 0.652], [0.104, 0.652], [0.371, 0.749]]
  """
  # odd constants keep neighbouring seeds, tokens and experts apart before the bits are mixed
  token_N = _mixed(token_N.astype(jnp.uint32) + jnp.uint32(seed * 0x9E3779B9 % 2**32))
  id_U = (jnp.arange(ids, dtype=jnp.uint32) + 1) * jnp.uint32(0x85EBCA77)
  bits_NU = _mixed(token_N[:, None] + id_U[None])
  return (bits_NU >> 8).astype(jnp.float32) / 2**24  # as many bits as float32 holds


def _mixed(a):
  """The 32 bits of every number, each depending on all of them (the end of MurmurHash3)."""
  a = (a ^ (a >> 16)) * jnp.uint32(0x85EBCA6B)
  a = (a ^ (a >> 13)) * jnp.uint32(0xC2B2AE35)
  return a ^ (a >> 16)


def packed(count_V, ids: int, k: int) -> np.ndarray:
  """The balanced table: k ids for every token id, the most frequent token first.

  >>> packed([5, 1, 4, 2], ids=2, k=1).tolist()
  [[0], [0], [1], [1]]
  """
  table_VK, heap = np.zeros((len(count_V), k), np.int32), [(0, e) for e in range(ids)]
  for token in np.argsort(-np.asarray(count_V), kind="stable"):
    least = [heapq.heappop(heap) for _ in range(k)]
    table_VK[token] = [e for _, e in least]
    for load, e in least:
      heapq.heappush(heap, (load + int(count_V[token]), e))
  return table_VK


@functools.cache
def _table(path, vocab, ids, k):
  """The balanced table of a file."""
  try:
    count_V = np.load(path)
  except (OSError, ValueError) as reason:
    raise Wrong(
      f"hash: the counts {path!r} cannot be read ({reason}); write them with numpy.save."
    ) from reason
  if count_V.ndim != 1 or count_V.min(initial=0) < 0 or len(count_V) != (vocab or len(count_V)):
    raise Wrong(
      f"hash: the counts {path!r} have shape {count_V.shape} and a smallest value of"
      f" {count_V.min(initial=0)}; give one count of at least 0 for each of {vocab} token ids."
    )
  return packed(count_V, ids, k)


def select(logit_NU, inputs, cfg):
  """The k highest."""
  return routing.top_k(logit_NU, cfg.k, inputs.knobs.get("k_active"))


def weigh(logit_NU, expert_NK, inputs, cfg):
  """The same for all choices of a token."""
  gate_NK = (expert_NK >= 0).astype(jnp.float32)
  return routing.renormalise(gate_NK) if cfg.renormalise else gate_NK


class Router(nn.Module):
  cfg: Config

  def __call__(self, inputs):
    """Hashes as logits; the table's ids stand above them, its first one highest."""
    cfg, ids = self.cfg, inputs.num_experts + len(inputs.virtual)
    if inputs.token_N is None:
      raise Wrong(
        "hash: the model hands on no token ids, and the router reads nothing else; use it in a"
        " model of tokens, as 'decoder', or another router."
      )
    logit_NU = hashed(inputs.token_N, ids, cfg.seed)
    if cfg.counts is not None:
      table_VK = jnp.asarray(_table(cfg.counts, inputs.vocab, ids, cfg.k))
      expert_NK = table_VK[inputs.token_N]
      for j in range(cfg.k):
        logit_NU += (cfg.k - j) * jax.nn.one_hot(expert_NK[:, j], ids)
    return logit_NU, inputs
