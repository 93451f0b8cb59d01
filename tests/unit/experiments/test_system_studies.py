"""What the studies of systems conclude from tables that are made up."""

import numpy as np

from experiments.studies import fssdp, overlap, se_moe
from experiments.verdicts import Table


def table(arms, **columns):
  """Three seeds of every arm; a column is one number for all, or one for each arm."""
  of = lambda value, i: value[i] if isinstance(value, tuple) else value
  return Table(
    [{"arm": arm, "seed": s, **{key: of(value, i) for key, value in columns.items()}}
     for i, arm in enumerate(arms) for s in range(3)]
  )  # fmt: skip


def word(study, **columns):
  return study.verdict(table(study.ARMS, **columns)).partition(":")[0]


def test_copies_must_be_exact_spare_the_busiest_and_be_foreseen():
  falling = (3.0, 2.5, 2.0, 1.5, 1.0)
  good = {"loss": 2.0, "exact": 1.0, "copied_bytes": 8.0, "run_busiest": falling,
          "zipf_known": falling, "zipf_predicted": falling, "zipf_fixed": 3.0}  # fmt: skip
  assert word(fssdp, **good) == "holds"
  assert word(fssdp, **good | {"exact": (1.0, 1.0, 0.0, 1.0, 1.0)}) == "fails"
  assert word(fssdp, **good | {"run_busiest": (3.0, 2.5, 2.5, 1.5, 1.0)}) == "fails"
  assert word(fssdp, **good | {"zipf_predicted": (3.0, 2.7, 2.4, 2.0, 1.6)}) == "fails"
  assert word(fssdp, **good | {"loss": (2.0, 2.0, 2.0, 2.0, 2.1)}) == "fails"


def test_the_busiest_device_has_its_own_experts_and_its_part_of_the_copied_ones():
  """Two experts a device: by hand, without copies, with one, with all."""
  load_E = np.array([5.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
  busy = [fssdp.busiest(load_E, fssdp.hottest(load_E, hot), 4) for hot in (0, 1, 8)]
  assert busy == [6 / 2, (5 / 4 + 2) / 2, 1.0]


def test_a_schedule_must_have_dense_work_under_all_but_serial_exchanges():
  under = {f"{blocks}_{way}": 3.0 for blocks in ("free", "overlap") for way in ("there", "back")}
  good = {"loss": 2.0, "serial_there": 0.0, "serial_back": 0.0, **under}
  assert word(overlap, **good) == "holds"
  assert word(overlap, **good | {"overlap_there": 0.0}) == "fails"
  assert word(overlap, **good | {"serial_back": 1.0}) == "fails"
  assert word(overlap, **good | {"free_back": float("nan")}) == "unclear"


def test_a_cache_and_a_ring_are_judged_apart():
  good = {"real_by_uses": 0.5, "real_by_age": 0.4, "zipf_least_lead": 1.0, "formula": 1.0,
          "peak_1": 2.0, "peak_2": 3.0, "peak_4": 5.0, "peak_16": 16.0}  # fmt: skip
  assert word(se_moe, **good) == "holds"
  assert word(se_moe, **good | {"real_by_age": (0.4, 0.6)}) == "fails"
  assert word(se_moe, **good | {"peak_2": 4.5}) == "fails"
  assert word(se_moe, **good | {"peak_1": float("nan")}) == "unclear"
