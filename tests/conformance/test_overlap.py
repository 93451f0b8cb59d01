"""Shortcut blocks whose experts wait: the same numbers, in the order that overlaps."""

import os
import re

import drawn
import eight
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.core import axes, config
from moejax.models import decoder
from moejax.perf import hlo


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


def schedule(text: str) -> str:
  """The entry of a compiled program as signs: < and > begin and end an exchange, F has a matmul."""
  bodies, entry = hlo.computations(text)
  has_dot = lambda name: any(i.opcode in ("dot", "convolution") for i in bodies[name])
  signs = []
  for one in bodies[entry]:
    if "all-to-all" in one.opcode:
      signs.append("<" if one.opcode.endswith("start") else ">")
    called = re.search(r"calls=%?([\w.\-]+)", one.rest)
    if one.opcode in ("dot", "convolution") or (called and has_dot(called[1])):
      signs.append("F")
  return "".join(signs)


@pytest.mark.aot
@pytest.mark.parametrize("overlap", [True, False])
def test_dense_work_lies_under_both_ways_of_the_exchange(overlap):
  pytest.importorskip("libtpu", reason="needs libtpu: pip install 'moejax[aot]'")
  from jax.experimental import topologies

  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  there = topologies.get_topology_desc("v5e:2x4", "tpu")
  mesh = jax.sharding.Mesh(np.array(there.devices), ("expert",), axis_types=(AxisType.Auto,))
  m, token_BT = model(overlap, D=256, F=1024, vocab=256), jnp.zeros((8, 256), jnp.int32)
  shapes = jax.eval_shape(m.init, jax.random.key(0), token_BT)
  at = lambda spec: NamedSharding(mesh, spec)
  params = jax.tree.map(
    lambda s, spec: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16, sharding=at(spec)),
    shapes["params"], axes.specs(shapes["params"], mesh),
  )  # fmt: skip
  rest = {
    name: jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at(P())), tree)
    for name, tree in shapes.items() if name != "params"
  }  # fmt: skip
  tokens = jax.ShapeDtypeStruct(token_BT.shape, jnp.int32, sharding=at(P("expert")))
  with jax.set_mesh(mesh):
    run = jax.jit(lambda params, rest, t: m.apply({"params": params, **rest}, t)[0])
    options = {"xla_tpu_enable_async_all_to_all": "true"}
    text = run.lower(params, rest, tokens).compile(compiler_options=options).as_text()
  order = schedule(text)
  under = [len(part.partition(">")[0]) for part in order.split("<")[1:]]
  assert len(under) == 2, order
  assert (under[0] >= 2) == overlap, order  # the first dense FFN has at least two products
  assert under[1] >= 2, order
