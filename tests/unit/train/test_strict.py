"""Strict runs have the same bits on any number of owners, with dropped tokens and a controller."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from moejax.core import config, plugin
from moejax.core.plugin import Wrong
from moejax.dispatch import ordered
from moejax.lab import audit_grid, audit_report
from moejax.layers import experts
from moejax.train import mesh as meshes
from moejax.train import phase

SECTION = config.merge(
  audit_grid.RUN,
  {
    "model": {
      "layers": [{"ffn": "moe"}, {"ffn": "moe"}],
      "moe": {"dispatch": {"name": "ordered"}, "edits": [{"name": "capacity", "factor": 1.0}]},
    },
    "train": {"strict": True, "batch_size": 8, "steps": 5, "lr_peak": 0.03},
    "data": {"seq_len": 8},
  },
)
TEXT = types.SimpleNamespace(bytes_V=np.ones(32)), ("all",), 0


def train(mesh_text, **changes):
  """[5, 3]: loss, norm of the gradients and balance loss of five steps."""
  cfg = config.resolve({**config.merge(SECTION, changes), "mesh": mesh_text})
  corpus = types.SimpleNamespace(
    **dict(zip(("tokenizer", "labels", "modalities"), TEXT, strict=True))
  )
  mesh, batch = meshes.make(mesh_text), audit_report.drawn(SECTION)
  with jax.set_mesh(mesh):
    at = phase.make(0, cfg, None, corpus, mesh)
    state = at.start(jnp.zeros(phase.micro_batch(cfg), jnp.int32))
    rows = {name: meshes.batch(array, mesh) for name, array in batch.items()}
    compiled, seen = at.step.lower(state, rows).compile(), []
    for _ in range(5):
      state, out = compiled(state, rows)
      seen.append([out[name] for name in ("loss", "grad_norm", "balance")])
  return np.asarray(jax.device_get(seen), np.float32)


@pytest.fixture(scope="module")
def two():
  return train("expert:2")


@pytest.mark.parametrize("owners", [1, 4, pytest.param(8, marks=pytest.mark.mesh)])
def test_every_number_of_owners_has_the_same_bits(owners, two):
  assert np.ptp(two[:, 0]) > 0.01, "the loss moves"
  np.testing.assert_array_equal(train(f"expert:{owners}"), two)


@pytest.mark.mesh
@pytest.mark.parametrize("owners", [1, 8])
def test_micro_batches_too(owners):
  changes = {"train": {"accumulate": 2}}
  np.testing.assert_array_equal(train(f"expert:{owners}", **changes), train("expert:2", **changes))


@pytest.mark.mesh
def test_remat_too_but_for_one_device():
  """What is computed again on one device the compiler takes together in another way."""
  changes = {"model": {"remat": "full"}}
  two = train("expert:2", **changes)
  np.testing.assert_array_equal(train("expert:8", **changes), two)
  np.testing.assert_allclose(train("expert:1", **changes), two, rtol=1e-6)


def test_what_has_no_fixed_order_is_refused():
  with pytest.raises(Wrong, match=r"strict: sums over tensor:2 have no fixed order; use a mesh of"):
    train("tensor:2,expert:2")
  with pytest.raises(Wrong, match="strict: the dispatch 'ragged' adds up in an order that"):
    train("expert:2", model={"moe": {"dispatch": {"name": "ragged"}}})


def test_of_experts_that_cannot_be_cut():
  plan, (x_ND, params) = plans.token_plan(jnp.zeros((8, 1), jnp.int32)), plans.arguments(n=8)
  three = {name: leaf[:3] for name, leaf in params.items()}
  plan = plan.replace(num_experts=3)
  with jax.set_mesh(meshes.make("expert:2")), pytest.raises(Wrong, match="3 experts cannot be cut"):
    ordered.run(plan, x_ND, experts.gated(three), ordered.Config())
  assert plugin.stem(ordered.Config()) == "ordered"
