"""Dropless dispatch: its order, and eight CPU devices against the dense oracle on one."""

import jax
import jax.numpy as jnp
import plans
import pytest
from close import assert_close
from jax.sharding import AxisType
from test_dispatch import outcome

from moejax.core.plan import ExpertPlan
from moejax.core.rows import Rows

MESHES = {
  "data8": {"data": 8},
  "expert4_tensor2": {"expert": 4, "tensor": 2},
  "fsdp2_context2_tensor2": {"fsdp": 2, "context": 2, "tensor": 2},
  "data2_stage4": {"data": 2, "stage": 4},
}
N, D, F, E = 32, 6, 8, 4
mesh_test = pytest.mark.mesh


def plan_of(kind):
  key = jax.random.key(5)
  if kind == "expert_choice":  # four groups of eight tokens, each with three slots per expert
    token_EGC = jax.random.randint(key, (E, 4, 3), 0, 8) + 8 * jnp.arange(4)[None, :, None]
    token_EC = token_EGC.reshape(E, 12).at[1, ::5].set(-1)
    return ExpertPlan(token_EC, jax.random.uniform(key, (E, 12)), N, groups=4)
  expert_NK = jax.lax.top_k(jax.random.normal(key, (N, E)), 2)[1].at[3].set(-1)
  plan = plans.token_plan(jnp.where(jnp.arange(N)[:, None] < 20, jnp.array([[2, 0]]), expert_NK))
  return plans.with_slots(plan, groups=4) if kind == "slots" else plan


@pytest.mark.parametrize(
  ("mesh", "kind"),
  [
    ("expert4_tensor2", "tokens"),
    pytest.param("expert4_tensor2", "expert_choice", marks=mesh_test),
    *(
      pytest.param(mesh, kind, marks=mesh_test)
      for mesh in MESHES
      for kind in ("tokens", "slots", "expert_choice")
      if mesh != "expert4_tensor2"
    ),
  ],
)
def test_every_mesh_gives_the_dense_result(mesh, kind):
  plan, (x_ND, params) = plan_of(kind), plans.arguments(N, D, F, E)
  check(mesh, plan, x_ND, params)


def test_what_a_mesh_cannot_cut_stays_whole():
  plan, (x_ND, params) = plans.battery()["virtual"], plans.arguments()
  assert len(x_ND) == 13
  check("expert4_tensor2", plan, x_ND, params)


def check(mesh, plan, x_ND, params):
  want = outcome("dense", plan, x_ND, params)
  sizes = MESHES[mesh]
  mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))
  with jax.set_mesh(mesh):
    assert_close(outcome("sort", plan, x_ND, params), want)


def test_gathers_are_the_scatters_they_stand_for():
  """The table of rows changes how a result is computed, not what it is, backward included."""
  keys = jax.random.split(jax.random.key(1), 3)
  x_ND, y_MD = jax.random.normal(keys[0], (3, 2)), jax.random.normal(keys[1], (6, 2))
  token_M = jnp.array([1, 0, 2, 1, -1, -1])
  row_NK, gate_M = jnp.array([[1, 6], [0, 3], [2, 6]]), jax.random.normal(keys[2], (6,))

  def loss(x_ND, y_MD, gate_M, row_NK):
    rows = Rows(x_ND, token_M, gate_M, row_NK)
    there_MD, back_ND = rows.x_MD(), rows.combine(y_MD)
    return jnp.sum(jnp.sin(there_MD)) + jnp.sum(jnp.cos(back_ND)), (there_MD, back_ND)

  both = [
    jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x_ND, y_MD, gate_M, table)
    for table in (row_NK, None)
  ]
  assert_close(*both)
  assert float(jnp.abs(both[0][0][1][0][4:]).max()) == 0
