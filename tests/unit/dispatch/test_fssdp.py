"""Hot experts as copies: any number of them is the same layer, and moves the bytes it says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from close import assert_close

from moejax.core.plugin import Wrong
from moejax.dispatch import dense, fssdp
from moejax.layers import experts
from moejax.train import mesh as meshes

N, D, F, E = 32, 6, 8, 4
MESH = "data:2,expert:4"


def plan_of():
  """Two choices for each token, mostly of experts 2 and 0; some unused."""
  draw = np.random.default_rng(3)
  expert_NK = np.where(draw.random((N, 2)) < 0.6, [[2, 0]], [[1, 3]])
  expert_NK[5], expert_NK[9, 1] = -1, -1
  return plans.token_plan(jnp.asarray(expert_NK))


def outcome(run, cfg):
  def loss(plan, x_ND, params):
    y_ND, sums = run(plan, x_ND, experts.gated(params), cfg)
    return jnp.sum(jnp.sin(y_ND)), (y_ND, sums)

  grad_fn = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
  return jax.jit(grad_fn)


@pytest.fixture(scope="module")
def want():
  (loss, (y_ND, _)), grads = outcome(dense.run, dense.Config())(
    plan_of(), *plans.arguments(N, D, F, E)
  )
  return loss, y_ND, grads


@pytest.mark.parametrize("hot", [0, 2, pytest.param(3, marks=pytest.mark.mesh), E])
def test_any_number_of_hot_experts_is_the_same_layer(hot, want):
  arguments = (plan_of(), *plans.arguments(N, D, F, E))
  with jax.set_mesh(meshes.make(MESH)):
    run = outcome(fssdp.run, fssdp.Config(hot))
    lowered = run.lower(*arguments)
    (loss, (y_ND, sums)), grads = lowered.compile()(*arguments)
  assert_close((loss, y_ND, grads), want)
  count_U = np.sort(np.asarray(plan_of().count_U()))[::-1]
  assert int(sums["copied"]) == count_U[:hot].sum(), "the hot ones are those with the most rows"
  moved = buffers(lowered.as_text(), hot)
  assert moved == (2 * fssdp.bytes_moved(hot, D, F) if hot else 0), "there, and gradients back"


def buffers(text, hot):
  """Bytes of the sums over owners of [hot, D, F] and [hot, F, D], in both passes."""
  shapes = "|".join(f"{hot}x{a}x{b}" for a, b in ((D, F), (F, D)))
  found = re.findall(rf"\}}\) : \(tensor<({shapes})xf32>\) -> tensor<(?:{shapes})xf32>", text)
  return 4 * hot * D * F * len(found)


def test_what_cannot_be_is_refused():
  with pytest.raises(Wrong, match="hot is -1"):
    fssdp.Config(-1)
  with pytest.raises(Wrong, match="5 hot experts of 4 cannot be"):
    fssdp.run(plan_of(), *plans.arguments(N, D, F, E), fssdp.Config(5))
