"""Shortcut blocks whose experts wait for dense work: the same numbers."""

import drawn
import eight
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from moejax.core import config
from moejax.models import decoder


def model(overlap, D=8, F=8, vocab=11):
  moe = {"num_experts": 8, "hidden": F, "router": {"name": "topk"}}
  moe |= {"dispatch": {"name": "all_to_all"}, "edits": [{"name": "capacity", "factor": 1.0}]}
  section = {
    "vocab": vocab, "width": D, "mlp": {"hidden": F}, "moe": moe,
    "attention": {"heads": 2, "kv_heads": 2, "head_width": D // 2},
    "layers": [{"name": "shortcut", "overlap": overlap}],
  }  # fmt: skip
  return decoder.Model(config.resolve({"model": section}).model)


def graded(model):
  def loss(params, variables, token_BT):
    logit_BTV, _ = model.apply({**variables, "params": params}, token_BT)
    return jnp.sum(jnp.sin(logit_BTV))

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.mesh
def test_waiting_changes_no_number():
  token_BT = jnp.asarray(np.random.default_rng(0).integers(0, 11, (8, 6)))
  free = model(False)
  variables = drawn.variables(free, token_BT)
  alone = graded(free)(variables["params"], variables, token_BT)
  with jax.set_mesh(eight.mesh(data=2, expert=4)):
    results = [graded(m)(variables["params"], variables, token_BT) for m in (free, model(True))]
  jax.tree.map(np.testing.assert_array_equal, *results)
  assert_close(results[1], alone)
