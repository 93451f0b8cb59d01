"""Shortcut blocks whose experts wait for dense work: the same numbers, and what a TPU overlaps."""

import drawn
import eight
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from experiments.studies import overlap as study
from moejax.core import config
from moejax.models import decoder
from pallas_kernels import aot


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


@pytest.mark.aot
@pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))
@pytest.mark.parametrize("blocks", ["serial", "free", "overlap"])
def test_dense_matmuls_lie_under_both_exchanges_of_a_shortcut_and_of_no_serial_block(blocks):
  there, back = study.scheduled(blocks)
  if blocks == "serial":
    assert (there.under, back.under) == ((), ())
    return
  assert there.asynchronous and back.asynchronous
  for one in (there, back):
    assert one.under and all("/attention_1" in name or "/mlp_" in name for name in one.under)
