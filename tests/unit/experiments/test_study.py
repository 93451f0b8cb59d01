"""Studies with runs that only pretend to train: plans, verdicts, exit codes, what is written."""

import json
import pathlib
import types

import pytest

from experiments import command, study, verdicts
from experiments.studies import router_shootout, topk_vs_dense
from moejax.core.plugin import Wrong

RATES = {"low": 0.1, "high": 0.2}  # learning rates; the stand-in's loss is 3 - 10 times the rate


def table(**arms):
  return verdicts.Table(
    [{"arm": arm, "seed": s, "loss": x, "flops_per_token": 3e7}
     for arm, losses in arms.items() for s, x in enumerate(losses)]
  )  # fmt: skip


@pytest.fixture
def two_arms(stand_in, monkeypatch, tmp_path):
  """A study of two learning rates; its docs folder is in tmp_path."""
  (tmp_path / "docs").mkdir()
  monkeypatch.setattr(study, "ROOT", tmp_path)
  fake = types.SimpleNamespace(
    CLAIM="A higher rate is better.", ARMS=RATES, measure=topk_vs_dense.measure,
    verdict=lambda t: verdicts.lower(t, "loss", "high", than="low"),
  )  # fmt: skip
  monkeypatch.setattr(study, "load", lambda name: fake)
  plan = study.plan

  def planned(name, arms, seeds, overrides, workdir):
    jobs = plan("topk_vs_dense", ["topk"], seeds, overrides, workdir)
    return {
      (arm, seed): study.launch.Job(
        f"{arm} {seed}", (*job.argv, f"--config.train.lr_peak={RATES[arm]}"),
        workdir / f"{arm}{seed}", 2,
      )
      for arm in arms for (_, seed), job in jobs.items()
    }  # fmt: skip

  monkeypatch.setattr(study, "plan", planned)
  return [f"--workdir={tmp_path / 'out'}", "--workers=2", "toy"]


def test_a_whole_study_writes_its_verdict(two_arms, tmp_path, capsys):
  assert command.guard(study.main, two_arms) == 0
  said = capsys.readouterr().out
  assert "6 runs, 6 to do" in said and "holds: loss high 1.0000" in said
  for folder in (tmp_path / "out", tmp_path / "docs" / "results"):
    record = json.loads((folder / "toy.json").read_text())
    assert record["seeds"] == [0, 1, 2] and record["arms"] == RATES
    assert record["verdict"].startswith("holds") and len(record["numbers"]["runs"]) == 6
    assert record["numbers"]["arms"]["low"]["loss"] == {"mean": 2.0, "spread": 0.0}
    assert (folder / "toy.png").stat().st_size > 5000
  assert command.guard(study.main, two_arms) == 0
  assert "6 runs, 0 to do" in capsys.readouterr().out


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["--arms=high"], "unclear: not all arms"),
    (["--seeds=1"], "unclear: loss high"),
    (["--config.train.lr_peak=0.5"], "holds"),
  ],
)
def test_a_part_of_a_study_is_not_published(two_arms, tmp_path, capsys, words, sentence):
  code = command.guard(study.main, [*two_arms, *words])
  assert code == (0 if sentence == "holds" else 1)
  assert sentence in capsys.readouterr().out
  assert (tmp_path / "out" / "toy.json").exists()
  assert not (tmp_path / "docs" / "results").exists()


def test_a_failed_run_leaves_the_claim_unclear(two_arms, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(RATES, "high", 0.5)
  assert command.guard(study.main, two_arms) == 1
  assert "unclear: 3 runs failed, the first of them high" in capsys.readouterr().out
  assert not (tmp_path / "docs" / "results").exists()


def test_a_gap_inside_the_spread_is_unclear():
  judge = lambda a, b: verdicts.lower(table(a=a, b=b), "loss", "a", than="b").split(":")[0]
  assert judge([1.0, 1.1], [1.3, 1.4]) == "holds"
  assert judge([1.0, 1.3], [1.2, 1.3]) == "unclear"
  assert judge([1.3, 1.4], [1.0, 1.1]) == "fails"
  assert judge([1.0], [2.0]) == "unclear"


def test_topk_vs_dense_refuses_unequal_compute():
  rows = table(dense=[2.0, 2.1], topk=[1.0, 1.1])
  assert topk_vs_dense.verdict(rows).startswith("holds")
  rows.rows[0]["flops_per_token"] = 4e7
  assert topk_vs_dense.verdict(rows).startswith("unclear: FLOPs per token differ")


def test_router_shootout_looks_at_every_arm():
  losses = {arm: [2.0, 2.01] for arm in router_shootout.ARMS}
  judge = lambda **changes: router_shootout.verdict(table(**{**losses, **changes}))
  assert judge().startswith("holds") and "recurrent +0.00 %" in judge()
  assert judge(recurrent=[2.2, 2.21]).startswith("fails")
  assert judge(recurrent=[2.0, 2.2]).startswith("unclear")


def test_jobs_differ_by_arm_and_seed(tmp_path):
  jobs = study.plan("topk_vs_dense", ["dense", "topk"], range(2), [], tmp_path)
  assert len({job.workdir for job in jobs.values()}) == 4
  assert "--config=configs/studies/topk_vs_dense.py:dense" in jobs["dense", 1].argv
  assert "--config.train.seed=1" in jobs["dense", 1].argv


def test_wrong_use_is_one_sentence_and_exit_code_2(capsys):
  for argv, sentence in [
    (["topk_vs_dens"], "Did you mean 'topk_vs_dense'"),
    ([], "give one study"),
    (["topk_vs_dense", "--arms=dence"], "Did you mean 'dense'"),
    (["topk_vs_dense", "--seed=3"], "Did you mean '--seeds'"),
  ]:
    assert command.guard(study.main, argv) == 2
    assert sentence in capsys.readouterr().err
  with pytest.raises(Wrong, match="no field 'stesp'"):
    study.plan("topk_vs_dense", ["topk"], [0], ["--config.train.stesp=3"], pathlib.Path("x"))


RESULTS = sorted((pathlib.Path(__file__).parents[3] / "docs" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_published_verdict_follows_from_its_numbers(path):
  record = json.loads(path.read_text())
  module = study.load(path.stem)
  rows = verdicts.Table(record["numbers"]["runs"])
  assert record["verdict"] == module.verdict(rows)
  arms = json.loads(json.dumps(module.ARMS))  # tuples are lists in a file
  assert record["claim"] == module.CLAIM and record["arms"] == arms
  assert record["numbers"]["arms"] == rows.summary()
  assert len(record["seeds"]) >= study.SEEDS and record["date"] and "+" not in record["revision"]
  assert path.with_suffix(".png").exists()
