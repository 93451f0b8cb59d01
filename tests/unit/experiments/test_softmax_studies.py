"""What the studies of the softmax family conclude from tables that are made up."""

import numpy as np
import pytest

from experiments.studies import (
  conventions,
  deepseekmoe_granularity,
  expert_skipping,
  lbl_scope,
  moge_balance,
)
from experiments.verdicts import Table


def table(column, arms, **others):
  """One row per arm and seed; other columns are one number per arm."""
  return Table(
    [{"arm": arm, "seed": s, column: x, **{name: by[arm] for name, by in others.items()}}
     for arm, values in arms.items() for s, x in enumerate(values)]
  )  # fmt: skip


@pytest.mark.parametrize(
  "worst, word",
  [([2.01, 2.02, 2.03], "holds"), ([2.01, 2.05, 2.05], "unclear"), ([2.05, 2.06, 2.1], "fails")],
)
def test_conventions_are_judged_seed_by_seed(worst, word):
  losses = {arm: [2.0, 2.0, 2.0] for arm in conventions.ARMS} | {"vmoe": worst}
  said = conventions.verdict(table("loss", losses))
  assert said.startswith(f"{word}: best switch 2.0000, worst vmoe")


def test_granularity_needs_both_comparisons_and_equal_flops():
  coarse, fine = [2.0, 2.01, 2.02], [1.9, 1.91, 1.92]
  losses = {arm: fine if arm.startswith("m4") else coarse for arm in deepseekmoe_granularity.ARMS}
  equal = dict.fromkeys(losses, 1e6)
  judge = lambda losses, flops: deepseekmoe_granularity.verdict(
    table("loss", losses, flops_per_token=flops)
  )
  assert judge(losses, equal).startswith("holds: without")
  assert judge(losses | {"m4_s1": coarse}, equal).startswith("unclear: without")
  assert judge(losses, equal | {"m4_s0": 1.02e6}).startswith("unclear: FLOPs per token of m4_s0")


def test_the_imbalance_of_grouped_choices_must_be_nothing():
  losses = {arm: [2.0, 2.0, 2.0] for arm in moge_balance.ARMS}
  worst = {"topk": 1.0, "grouped_topk": 0.0, "limited": 2.0}
  judge = lambda losses, worst: moge_balance.verdict(
    table("loss", losses, worst_imbalance=worst)
  ).partition(":")[0]
  assert judge(losses, worst) == "holds"
  assert judge(losses | {"grouped_topk": [2.0, 2.1, 2.1]}, worst) == "unclear"
  assert judge(losses | {"grouped_topk": [2.1, 2.1, 2.1]}, worst) == "fails"
  assert judge(losses, worst | {"grouped_topk": 0.01}) == "fails"
  even = np.full(16, 1 / 16)
  assert moge_balance.imbalance(even, 4, 4) == 0
  assert moge_balance.imbalance(np.eye(16)[3], 4, 4) == 4


def test_skipping_is_judged_by_its_cost_per_expert():
  losses = {"none": [2.0, 2.0], "small": [2.01, 2.01], "all": [2.1, 2.1]}
  judge = lambda skipped: expert_skipping.verdict(table("loss", losses, skipped=skipped))
  assert judge({"none": 0.0, "small": 0.5, "all": 1.0}).startswith("holds: loss per skipped expert")
  assert judge({"none": 0.0, "small": 0.05, "all": 1.0}).startswith("fails")


def test_scopes_are_judged_by_their_information():
  bits = {"sequence": [0.01, 0.02], "micro_batch": [0.03, 0.03], "step": [0.05, 0.06]}
  assert lbl_scope.verdict(table("information", bits)).startswith("holds: information sequence")
