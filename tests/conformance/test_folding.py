"""Experts on other axes than usual: every table of roles gives what one device gives."""

import functools

import eight
import plans
import pytest
from close import assert_close
from test_dispatch import outcome
from test_expert_parallel import dense, plan_of

from moejax.core import axes
from moejax.perf import hlo
from moejax.train import mesh as meshes

N, D, F, E = 32, 6, 8, 8  # those of test_expert_parallel
MESH = {"data": 2, "context": 2, "tensor": 2}
mesh_test = functools.partial(pytest.param, marks=pytest.mark.mesh)


def folded(text, mesh=None):
  return meshes.entered(eight.mesh(**(mesh or MESH)), axes.Config(experts=text))


FOLDS = [  # (roles.experts, the axes of the mesh, dispatch)
  ("E:data+context+tensor,F:", MESH, "all_to_all"),
  ("E:context,F:tensor", MESH, "ragged"),
  ("E:data,F:context+tensor", MESH, "all_to_all"),  # width over an axis of tokens
  ("E:data,F:,N:tensor", MESH, "all_to_all"),  # devices with the same tokens send a share each
  mesh_test("E:data,F:,N:tensor", MESH, "ragged"),
  mesh_test("E:tensor,F:", MESH, "all_gather"),
  mesh_test("E:tensor+data,F:context", MESH, "ragged"),
  mesh_test("E:context+tensor,F:data", MESH, "all_to_all"),
  mesh_test("E:,F:data+tensor", MESH, "all_to_all"),
  mesh_test("E:,F:data+context+tensor", MESH, "ragged"),
  mesh_test("E:data+context,F:tensor", MESH, "fssdp"),
  mesh_test("E:data+tensor,F:context", MESH, "ring"),
  mesh_test("E:data+tensor,F:context", MESH, "adaptive"),
  mesh_test("E:data+tensor,F:", MESH, "hierarchical"),
  mesh_test("E:data+tensor,F:context", MESH, "dedup"),
  mesh_test("E:tensor,F:context", MESH, "sort"),
  mesh_test("E:expert+tensor,F:", {"fsdp": 2, "expert": 2, "tensor": 2}, "ragged"),
  mesh_test("E:fsdp+expert,D:", {"fsdp": 2, "expert": 2, "tensor": 2}, "all_to_all"),
]


@pytest.mark.parametrize("text, mesh, dispatch", FOLDS)
def test_a_folded_layer_is_the_layer(text, mesh, dispatch):
  plan, (x_ND, params), want = plan_of("capacity"), plans.arguments(N, D, F, E), dense("capacity")
  with folded(text, mesh):
    assert_close(outcome(dispatch, plan, x_ND, params), want)


def test_devices_with_the_same_tokens_send_a_share_each():
  plan, (x_ND, params) = plan_of("capacity"), plans.arguments(N, D, F, E)

  def sent(text):
    with folded(text):
      compiled, _ = eight.program("all_to_all", None, plan, x_ND, params)
    return hlo.totals(eight.moved(compiled))["all-to-all"]

  assert sent("E:data,F:") == 2 * sent("E:data,F:,N:tensor")
