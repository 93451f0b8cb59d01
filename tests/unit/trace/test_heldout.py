"""A run without its best experts: forced from below, against a router that chooses so by itself."""

import numpy as np
import pytest

from experiments import heldout
from moejax.core import routing
from moejax.lab import scoring
from moejax.routers import topk
from moejax.train import restore


def plain_loss(path, batches):
  """The loss of a run on its first held-out batches, nothing forced."""
  run = restore.load(path)
  score, total, count = scoring.Score(run), 0.0, 0
  for index in range(batches):
    seen = score(scoring.batch_at(run, "validation", index))
    total += float(seen["loss_BT"][seen["valid_BT"]].sum(dtype=np.float64))
    count += int(seen["valid_BT"].sum())
  return total / count


@pytest.mark.slow
def test_experts_out_of_reach_are_a_router_that_starts_further_down(traced, monkeypatch):
  free, without_one, without_two = heldout.without_the_best(traced.workdir, (0.0, 0.2, 0.4))
  np.testing.assert_allclose(free, plain_loss(traced.workdir, 2), rtol=1e-6)
  assert len({free, without_one, without_two}) == 3
  for best, got in ((1, without_one), (2, without_two)):
    lower = lambda logit_NU, inputs, cfg, best=best: routing.top_k(logit_NU, best + cfg.k)[:, best:]
    monkeypatch.setattr(topk, "select", lower)
    scoring._compiled.cache_clear()
    np.testing.assert_allclose(got, plain_loss(traced.workdir, 2), rtol=1e-5)
  scoring._compiled.cache_clear()
