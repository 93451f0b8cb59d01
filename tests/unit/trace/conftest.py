"""A tiny trained run with a trace of every step."""

import pytest

from moejax.core import config
from moejax.train import loop

MODEL = {
  "width": 8,
  "attention": {"heads": 1, "kv_heads": 1, "head_width": 8},
  "moe": {"num_experts": 5, "hidden": 8, "router": {"name": "topk", "k": 2}},
  "layers": [{"ffn": "moe"}, {"ffn": "moe"}],
}  # fmt: skip


@pytest.fixture(scope="package")
def settings(two_kinds):
  """settings(**of train) -> the config of a run, two kinds of text in it."""
  data = {**two_kinds, "seq_len": 16}
  usual = {"steps": 4, "batch_size": 4, "log_every": 1, "eval_every": 9, "checkpoint_every": 2}
  usual |= {"sample_tokens": 0, "lr_peak": 1e-2}

  def make(model=None, **train):
    train = {**usual, **train}
    return config.resolve(
      {"model": {**MODEL, **(model or {})}, "data": data, "train": train, "mesh": "data:1"}
    )

  return make


@pytest.fixture(scope="package")
def traced(settings, tmp_path_factory):
  """The result of the run."""
  return loop.fit(settings(trace_every=1), tmp_path_factory.mktemp("runs") / "a", terminal=False)
