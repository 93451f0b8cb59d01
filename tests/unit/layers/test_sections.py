"""Sections that wait in host memory: the output of resident ones, and the bytes they free."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers import sections
from pallas_kernels import aot

N, D = 6, 16


def section(weights, x_BD):
  h_BD = jnp.tanh(x_BD @ weights["wi_DD"])
  return x_BD + h_BD @ weights["wo_DD"]


def placed(weights, kind):
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
  return jax.device_put(weights, one)


@pytest.mark.parametrize("K", [1, 2, N - 1, N])
def test_a_ring_gives_what_resident_sections_give(K):
  """Output and gradient for x exactly, whatever part waits; a section is what its place says."""
  keys = jax.random.split(jax.random.key(0), 3)
  names = ("wi_DD", "wo_DD")
  weights = {n: jax.random.normal(k, (N, D, D)) for n, k in zip(names, keys[:2], strict=True)}
  x_BD = jax.random.normal(keys[2], (4, D))
  near, far = sections.split(weights, K)
  far = placed(far, "pinned_host")
  assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(far)} == {"pinned_host"}
  loss = lambda near, far, x_BD: jnp.sum(jnp.sin(sections.through(section, near, far, x_BD)))
  value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=2))
  none = jax.tree.map(lambda leaf: leaf[:0], weights)
  np.testing.assert_array_equal(
    value_and_grad(near, far, x_BD)[0], value_and_grad(weights, none, x_BD)[0]
  )
  np.testing.assert_array_equal(
    value_and_grad(near, far, x_BD)[1], value_and_grad(weights, none, x_BD)[1]
  )
  by_hand = x_BD
  for i in range(N):
    by_hand = section(jax.tree.map(lambda leaf, i=i: leaf[i], weights), by_hand)
  got = jax.jit(lambda *a: sections.through(section, *a))(near, far, x_BD)
  np.testing.assert_allclose(got, by_hand, rtol=2e-5, atol=2e-5)


@pytest.mark.aot
@pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing()))
def test_on_a_tpu_what_waits_is_in_host_memory_and_the_peak_falls():
  D, one = 2048, 2 * 2048**2 * 2
  mesh = aot.mesh("v5e")
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  there = here.with_memory_kind("pinned_host")
  peaks = []
  for K in (1, 2, N - 1):
    of = lambda n, at: {
      name: jax.ShapeDtypeStruct((n, D, D), jnp.bfloat16, sharding=at)
      for name in ("wi_DD", "wo_DD")
    }
    x_BD = jax.ShapeDtypeStruct((8, D), jnp.bfloat16, sharding=here)
    run = jax.jit(lambda *a: sections.through(section, *a))
    with jax.set_mesh(mesh), aot.environment():
      traced = run.trace(of(K, here), of(N - K, there), x_BD)
      memory = traced.lower(lowering_platforms=("tpu",)).compile().memory_analysis()
    assert memory.host_argument_size_in_bytes == (N - K) * one
    peaks.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    assert peaks[-1] <= (K + 2) * one * 1.05
  assert peaks == sorted(peaks)
