"""Traces of training: what is recorded, that nothing else changes, and what a replay does."""

import contextlib
import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import normal, variables

from moejax.core import config, dtypes
from moejax.core.plugin import Wrong
from moejax.data import text
from moejax.models import decoder
from moejax.trace import format as formats
from moejax.train import loop, objective, phase, tracing
from moejax.train import mesh as meshes

FILE = pathlib.Path("traces", "stage_0.trace")


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a.state.params, b.state.params)


def test_a_trace_changes_nothing_and_has_every_step(traced, settings, tmp_path):
  trace = formats.read(pathlib.Path(traced.workdir, FILE))
  assert [(b.step, b.batch) for b in trace.blocks] == [(1, 0), (2, 1), (3, 2), (4, 3)]
  assert trace.head.layers == {f"layer_00{i}": {"K": 2, "U": 5} for i in (0, 1)}
  assert trace.head.tokens == 64 and trace.head.labels == ("fruit", "tools")
  same(traced, loop.fit(settings(), tmp_path / "b", terminal=False))
  assert not (tmp_path / "b" / "traces").exists()


@pytest.mark.slow
def test_a_resumed_run_has_the_same_trace(traced, settings, tmp_path):
  workdir = shutil.copytree(traced.workdir, tmp_path / "c")
  shutil.rmtree(workdir / "checkpoints" / "4")
  want, file = (workdir / FILE).read_bytes(), workdir / FILE
  file.write_bytes(want[:-7])  # as by a kill
  same(traced, loop.fit(settings(trace_every=1), workdir, terminal=False))
  assert file.read_bytes() == want


@pytest.mark.slow
def test_a_step_recorded_on_held_out_text_has_the_same_text_each_time(settings, tmp_path):
  cfg = settings(trace_every=2, trace_split="validation")
  loop.fit(cfg, tmp_path / "d", terminal=False)
  blocks = formats.read(tmp_path / "d" / FILE).blocks
  assert [(b.step, b.batch) for b in blocks] == [(2, 0), (4, 0)]
  assert blocks[0].text == blocks[1].text
  assert (
    blocks[0].layers["layer_000"]["gate_NK"] != blocks[1].layers["layer_000"]["gate_NK"]
  ).any()


@pytest.mark.mesh
def test_on_a_mesh_the_trace_is_that_of_one_device_and_can_be_replayed(traced, settings, tmp_path):
  path = pathlib.Path(traced.workdir, FILE)
  cfg = settings(trace_every=1, steps=1, replay=str(path))
  loop.fit(dataclasses.replace(cfg, mesh="data:2"), tmp_path / "m", terminal=False)
  (got,), want = formats.read(tmp_path / "m" / FILE).blocks, formats.read(path).blocks[0]
  assert got.text == want.text
  for name, layer in want.layers.items():
    np.testing.assert_array_equal(got.layers[name]["expert_NK"], layer["expert_NK"])
    np.testing.assert_allclose(got.layers[name]["gate_NK"], layer["gate_NK"], atol=2e-3)


@pytest.mark.slow
def test_training_follows_the_trace(traced, settings, tmp_path):
  other = formats.read(pathlib.Path(traced.workdir, FILE))
  mixed = formats.Writer(tmp_path / "mixed.trace", other.head)
  for block in other.blocks[1:]:  # step 1 stays free
    layers = {n: {**v, "expert_NK": (v["expert_NK"] + 1) % 5} for n, v in block.layers.items()}
    mixed.add(formats.Block(block.step, block.batch, block.text, block.label_N, layers))
  mixed.close()
  cfg = settings(replay=str(tmp_path / "mixed.trace"), trace_every=1)
  moved = loop.fit(cfg, tmp_path / "f", terminal=False)
  assert moved.metrics["loss"] != traced.metrics["loss"]
  seen = formats.read(tmp_path / "f" / FILE).blocks
  forced = [other.blocks[0], *formats.read(tmp_path / "mixed.trace").blocks]
  for got, want in zip(seen, forced, strict=True):
    np.testing.assert_array_equal(
      got.layers["layer_001"]["expert_NK"], want.layers["layer_001"]["expert_NK"]
    )


@pytest.fixture(scope="module")
def stage(settings):
  """(a stage that has not begun, its corpus, its first batch)."""
  cfg = settings()
  corpus, mesh = text.open(cfg.data, cfg.train.seed), meshes.make("data:1")
  cfg = dataclasses.replace(cfg, model=loop.sized(cfg.model, corpus.tokenizer))
  with contextlib.closing(corpus.batches("train", cfg.train.batch_size)) as batches:
    return phase.make(0, cfg, None, corpus, mesh), corpus, next(batches)


def replayed(stage, path):
  """The first batch with what a trace forces in it."""
  at, corpus, batch = stage
  train = dataclasses.replace(at.cfg.train, replay=str(path))
  at = at._replace(cfg=dataclasses.replace(at.cfg, train=train))
  return tracing.Replay(at, corpus).over(batch, 1)


WRONG = {
  "layer": ({"layers": {"layer_000": {"K": 2, "U": 5}}}, "layer_001 has no choices there and K=2"),
  "experts": (
    {"layers": {"layer_000": {"K": 2, "U": 5}, "layer_001": {"K": 1, "U": 4}}},
    "layer_001 has K=1 of U=4 there and K=2 of U=5 here. Use a trace of a model with the same",
  ),
  "seed": ({"seed": 3}, "seed is 3, and in this run 0; its choices are for other batches"),
  "split": ({"split": "validation"}, "split is 'validation', and in this run 'train'"),
}


@pytest.mark.parametrize("change, sentence", WRONG.values(), ids=WRONG)
def test_a_trace_of_another_model_or_other_batches_is_refused(
  traced, stage, tmp_path, change, sentence
):
  trace = formats.read(pathlib.Path(traced.workdir, FILE))
  about = {**trace.head.about, **{k: v for k, v in change.items() if k != "layers"}}
  layers = change.get("layers", trace.head.layers)
  head = dataclasses.replace(trace.head, layers=layers, about=about)
  writer, block = formats.Writer(tmp_path / "other.trace", head), trace.blocks[0]
  mine = {}
  for name, size in layers.items():
    taps = block.layers[name]
    mine[name] = {tap: a[:, : size["K"]] if a.ndim > 1 else a for tap, a in taps.items()}
    mine[name]["expert_NK"] = mine[name]["expert_NK"] % size["U"]
  writer.add(dataclasses.replace(block, layers=mine))
  writer.close()
  with pytest.raises(Wrong, match=sentence):
    replayed(stage, tmp_path / "other.trace")


def test_a_cut_trace_is_not_trained_with(traced, stage, tmp_path):
  whole = pathlib.Path(traced.workdir, FILE)
  forced_BTLK = replayed(stage, whole)["forced_BTLK"]
  want = formats.read(whole).blocks[0].layers["layer_001"]["expert_NK"]
  np.testing.assert_array_equal(forced_BTLK[:, :, 1].reshape(want.shape), want)
  path = tmp_path / "cut.trace"
  path.write_bytes(whole.read_bytes()[:-7])
  with pytest.raises(Wrong, match="cut.trace: truncated after step 3 "):
    replayed(stage, path)


@pytest.mark.slow
def test_forced_choices_are_bit_for_bit_the_free_ones_and_the_router_learns():
  section = {
    "vocab": 11, "width": 8, "attention": {"heads": 1, "kv_heads": 1, "head_width": 8},
    "moe": {"num_experts": 4, "hidden": 8, "router": {"k": 2}}, "layers": [{"ffn": "moe"}] * 2,
  }  # fmt: skip
  model = decoder.Model(config.resolve({"model": section}).model)
  token_BT = jnp.abs(7 * normal(0, 3, 9)).astype(jnp.int32) % 11
  held = variables(model, token_BT[:, :-1])
  params, state = held.pop("params"), held
  batch = {"token_BT": token_BT, "segment_BT": jnp.ones_like(token_BT)}
  loss_fn = objective.make(model, dtypes.Config())
  grads = jax.jit(
    lambda batch: jax.value_and_grad(loss_fn, has_aux=True)(params, state, batch, None, {}, {})
  )
  free = {**batch, "forced_BTLK": jnp.full((3, 8, 2, 2), -2)}
  choices = jax.jit(tracing.make(model, dtypes.Config()))
  choices = choices({"params": params, **state}, batch, None, {})
  labels = jnp.zeros_like(token_BT)
  block = tracing.block(0, 0, {**batch, "label_BT": labels}, jax.device_get(choices))
  laid = {**batch, "forced_BTLK": tracing.forced(block, 2, slice(None), 8)["forced_BTLK"]}
  want, got = grads(free), grads(laid)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  gate = got[1]["layers_000_001"]["0"]["ffn"]["router"]["gate_DE"]
  assert float(jnp.abs(gate).max()) > 1e-4
  laid["forced_BTLK"] = np.roll(laid["forced_BTLK"], 1, axis=0)  # those of another sequence
  assert grads(laid)[0][0] != want[0][0]
