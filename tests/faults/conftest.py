"""A run small enough to be killed many times, and processes that run it."""

import json
import random
import subprocess
import sys

import driver
import jax
import pytest

from moejax.core import config

WORDS = "router expert token gate plan slot load drop".split()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
  """A folder of documents without much sense."""
  folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
  for i in range(8):
    (folder / f"{i}.txt").write_text(" ".join(draw.choice(WORDS) for _ in range(200)))
  return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
  """Where compiled programs are kept, so that a run that starts again starts quickly."""
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def section(text, tmp_path_factory):
  """section(**changes) -> the dict of a tiny run."""
  cache = str(tmp_path_factory.mktemp("cache"))

  def make(**changes):
    base = {
      "model": {
        "width": 16,
        "attention": {"heads": 2, "kv_heads": 1},
        "mlp": {"hidden": 16},
        "moe": {
          "num_experts": 4,
          "hidden": 16,
          "router": {"name": "sigmoid_topk", "k": 2},
          "balance": {"sign": {}},
        },
        "layers": [{"ffn": "moe"}],
      },
      "data": {"source": f"text:{text}", "tokenizer": "bytes", "seq_len": 32, "cache": cache},
      "train": {
        "steps": 8, "batch_size": 4, "log_every": 1, "eval_every": 6, "eval_batches": 1,
        "checkpoint_every": 2, "sample_tokens": 0, "ema": 0.9,
      },
    }  # fmt: skip
    return config.merge(base, changes)

  return make


@pytest.fixture(scope="package")
def quick(compiled):
  """Programs are compiled without effort, since they run for milliseconds, and kept."""
  now = lambda name: (
    getattr(jax.config, name) if hasattr(jax.config, name) else jax.config.read(name)
  )
  before = {name: now(name) for name in driver.QUICK}
  driver.hurry(compiled)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(scope="session")
def start(compiled, tmp_path_factory):
  """start(section, workdir, *options) -> the process that runs it."""

  def run(section, workdir, *options):
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(json.dumps(section))
    command = [sys.executable, driver.__file__, str(file), str(workdir), str(compiled), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  return run
