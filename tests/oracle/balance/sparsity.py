"""Every positive logit of a token times the load of its id, all times a coefficient."""

from moejax.balance.sparsity import Config

CASES = (Config(start=1.0), Config(k=3.0, start=0.5, by_load=False))


def loss(now, before, cfg):
  total = 0.0
  for seen in now:
    tokens = list(seen.tokens())
    everyone = [e for token in tokens for e in token.ids]
    for e in range(seen.ids):
      fair = cfg.k * len(tokens) / seen.ids
      load = everyone.count(e) / fair if cfg.by_load else 1
      total += cfg.start * load * sum(max(token.logits[e], 0) for token in tokens) / len(tokens)
  return total


def even(cfg, layers, ids, k):
  """The logits of a token are 0, 1, ... in some order, and every id has as many choices."""
  return layers * cfg.start * (k / cfg.k if cfg.by_load else 1) * sum(range(ids))


def collapsed(cfg, layers, ids, k):
  return layers * cfg.start * (ids / cfg.k if cfg.by_load else 1) * 30 * k
