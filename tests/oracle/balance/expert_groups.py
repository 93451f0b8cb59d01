"""Group by group: its choices over those that it should have, times its mean probability."""

import numpy as np

from moejax.balance.expert_groups import Config
from oracle import softmax

CASES = (
  Config(groups=2, experts_per_token=1.5),
  Config(groups=4, experts_per_token=1.5, scope="step"),
  Config(groups=1, experts_per_token=1.2),
)
EXPERTS = 4  # the ids from here on are virtual


def loss(now, before, cfg):
  total = 0.0
  for i, seen in enumerate(now):
    scored = list(seen.tokens())
    earlier = [token for layers in before for token in layers[i].tokens()]
    counted = scored + earlier if cfg.scope == "step" else scored
    total += value(counted, scored, seen.ids, cfg)
  return total


def value(counted, scored, ids, cfg):
  choices = sum(len(token.ids) for token in counted) / len(counted)
  groups = [list(g) for g in np.split(np.arange(EXPERTS), cfg.groups)]
  targets = [cfg.experts_per_token / cfg.groups] * cfg.groups
  if ids > EXPERTS:
    groups, targets = (
      [*groups, list(range(EXPERTS, ids))],
      [*targets, choices - targets[0] * len(groups)],
    )
  total = 0.0
  for group, target in zip(groups, targets, strict=True):
    chosen = sum(e in group for token in counted for e in token.ids) / len(counted)
    total += chosen / target * np.mean([softmax(t.logits)[group].sum() for t in scored])
  return total


def even(cfg, layers, ids, k):
  """Choices and probabilities are the same for all ids, so that groups miss their targets."""
  experts, virtual = EXPERTS / ids, 1 - EXPERTS / ids
  excess = k * experts / cfg.experts_per_token
  return layers * (experts * excess + virtual * k * virtual / (k - cfg.experts_per_token))


def collapsed(cfg, layers, ids, k):
  """Ids 0 .. k - 1, of the first groups."""
  per_group = EXPERTS // cfg.groups
  share = [min(max(k - per_group * g, 0), per_group) / k for g in range(cfg.groups)]
  return layers * sum(s * s for s in share) * k * cfg.groups / cfg.experts_per_token
