"""What is told of a checkpoint that this version cannot read."""

import jax.numpy as jnp
import pytest

from moejax.core.plugin import Wrong
from moejax.train import checkpoint
from moejax.train.step import TrainState


def test_another_format_is_refused_and_left_where_it_is(tmp_path, monkeypatch):
  parts = {name: {} for name in TrainState.__dataclass_fields__}
  state = TrainState(**{**parts, "params": {"w_D": jnp.ones(2)}})
  written = checkpoint.Checkpoints(tmp_path, keep=1)
  written.save(3, state, {"stage": 0})
  written.close()
  monkeypatch.setattr(checkpoint, "FORMAT", 2)
  read = checkpoint.Checkpoints(tmp_path, keep=1)
  with pytest.raises(Wrong, match="checkpoint 3 .* has format 1, and this moejax reads 2; use"):
    read.meta(3)
  read.close()
  assert (tmp_path / "3").is_dir() and not read.damaged
