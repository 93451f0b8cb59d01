"""Traces of a checkpoint: recorded, laid over the same and another model, compared."""

import dataclasses
import pathlib

import numpy as np
import pytest

from moejax import cli
from moejax.core.plugin import Wrong
from moejax.lab import counterfactual, scoring, traces
from moejax.trace import diff
from moejax.trace import format as formats
from moejax.train import loop, restore


@pytest.fixture(scope="module")
def run(traced):
  return restore.load(traced.workdir)


@pytest.fixture(scope="module")
def trace(traced, tmp_path_factory):
  path = tmp_path_factory.mktemp("traces") / "a.trace"
  return formats.read(traces.record_run(traced.workdir, path, batches=2, gates="float32"))


def test_a_replay_is_bit_for_bit_the_free_run(trace, run):
  for gates in (False, True):
    found = traces.replay(trace, run, gates=gates)
    assert found["free"] == found["replayed"] and found["tokens"] > 50
    assert {layer["rate"] for layer in found["layers"].values()} == {0.0}
  free = scoring.Score(run)(scoring.batch_at(run, "validation", 0))
  layer = trace.blocks[0].layers["layer_001"]
  np.testing.assert_array_equal(layer["expert_NK"], free["layers"]["layer_001"]["expert_NK"])
  np.testing.assert_array_equal(layer["gate_NK"], free["layers"]["layer_001"]["gate_NK"])


def test_a_run_whose_experts_choose_is_recorded_and_replayed(settings, tmp_path):
  model = {"moe": {"num_experts": 4, "hidden": 8, "router": {"name": "expert_choice"}}}
  cfg = settings({**model, "allow_noncausal": True}, trace_every=1, steps=1)
  loop.fit(cfg, tmp_path / "chosen", terminal=False)
  run, path = restore.load(tmp_path / "chosen"), tmp_path / "chosen.trace"
  trace = formats.read(traces.record_run(tmp_path / "chosen", path, batches=1, gates="float32"))
  assert trace.head.layers["layer_001"] == {"K": 4, "U": 4}
  took_NE = trace.blocks[0].layers["layer_001"]["expert_NK"] >= 0
  np.testing.assert_array_equal(took_NE.sum(0), took_NE.sum() / 4)
  for gates in (False, True):
    found = traces.replay(trace, run, gates=gates)
    assert found["free"] == found["replayed"]
  swapped = dataclasses.replace(
    trace.blocks[0], layers=dict.fromkeys(trace.head.layers, trace.blocks[0].layers["layer_000"])
  )
  found = traces.replay(dataclasses.replace(trace, blocks=[swapped]), run)
  assert found["free"] != found["replayed"]
  assert found["layers"]["layer_000"]["rate"] == 0 < found["layers"]["layer_001"]["rate"]
  with pytest.raises(Wrong, match="in layer 0 experts choose by 'expert_choice'"):
    counterfactual.measure(run, "layer_001")


def test_another_checkpoint_is_told_by_its_flips_and_its_loss(trace, traced):
  before = restore.load(traced.workdir, 2)
  found = traces.replay(trace, before)
  assert found["free"] != found["replayed"]
  assert max(layer["rate"] for layer in found["layers"].values()) > 0
  count = sum(layer["choices"] for layer in found["layers"].values())
  assert sum(v["choices"] for v in found["margins"]) == count
  assert sum(v["choices"] for v in found["labels"].values()) == count
  flipped = lambda parts: sum(v["rate"] * v["choices"] for v in parts)
  assert np.isclose(flipped(found["margins"]), flipped(found["labels"].values()))
  assert np.isclose(flipped(found["margins"]), flipped(found["layers"].values()))


@pytest.mark.slow
def test_given_batches_and_another_precision(run, tmp_path):
  batches = {7: scoring.batch_at(run, "train", 1)}
  path = traces.record(run, tmp_path / "given.trace", batches.items())
  found = traces.replay(formats.read(path), run, compute="bfloat16", batches=batches)
  assert found["pairs"] == [(4, 4, 7)] and abs(found["free"] - found["replayed"]) < 0.05
  with pytest.raises(Wrong, match="of batches that were given"):
    traces.replay(formats.read(path), run)


def changed(trace, path, head=None, **block):
  """A trace with other contents."""
  writer = formats.Writer(path, head or trace.head)
  for one in trace.blocks:
    fields = {k: getattr(one, k) for k in ("step", "batch", "text", "label_N", "layers")}
    writer.add(formats.Block(**{**fields, **block}))
  writer.close()
  return formats.read(path)


def test_a_trace_of_another_model_or_text_is_refused(trace, run, tmp_path):
  head = formats.Head(
    {"layer_000": {"K": 2, "U": 6}, "layer_001": {"K": 2, "U": 5}}, *_rest(trace.head)
  )
  other = changed(trace, tmp_path / "other.trace", head)
  with pytest.raises(Wrong, match="layer_000 has K=2 of U=6 there and K=2 of U=5 here. Use a"):
    traces.replay(other, run)
  with pytest.raises(Wrong, match="is of another model than trace"):
    diff.compare(trace, other)
  other = changed(trace, tmp_path / "text.trace", text=5)
  with pytest.raises(Wrong, match="batch 0 of validation is another text in this run"):
    traces.replay(other, run)
  with pytest.raises(Wrong, match="have no batch of the same text in common"):
    diff.compare(trace, other)


def _rest(head):
  return head.tokens, head.gates, head.labels, head.about


def test_the_verbs(trace, traced, tmp_path, capsys):
  cut = tmp_path / "cut.trace"
  cut.write_bytes(trace.path.read_bytes()[:-9])
  assert cli.main(["trace", "diff", str(trace.path), str(cut)]) == 0
  out = capsys.readouterr().out
  assert (
    "layer_001" in out and "fruit" in out and "cut.trace: truncated after step 4 (batch 0)" in out
  )
  assert cli.main(["trace", "show", str(trace.path)]) == 0
  assert "2 batches of 64 tokens, steps 4 to 4" in capsys.readouterr().out
  assert cli.main(["trace", "record", traced.workdir, "--batches=1", "--gates=none"]) == 0
  path = capsys.readouterr().out.strip()
  assert pathlib.Path(path) == pathlib.Path(traced.workdir, "traces", "validation_4.trace")
  assert cli.main(["trace", "replay", path, traced.workdir]) == 0
  assert "with the choices of the trace (+0.00000)" in capsys.readouterr().out
  assert cli.main(["trace", "replay", path, traced.workdir, "--forced-gates"]) == 2
  assert "was recorded without gates" in capsys.readouterr().err
  assert cli.main(["trace", "replay", path]) == 2
  assert "trace replay needs FILE RUN" in capsys.readouterr().err
