"""The cross entropy head in chunks against the plain one, forward and gradients, and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from close import assert_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.losses import lm

N, D, V = 13, 6, 11


def arguments(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  x_ND = jax.random.normal(keys[0], (N, D), dtype)
  head_VD = jax.random.normal(keys[1], (V, D), dtype)
  target_N = jax.random.randint(keys[2], (N,), 0, V)
  return x_ND, head_VD, target_N, jnp.arange(N) % 3 != 1


def outcome(fn, x_ND, head_VD, target_N, valid_N):
  """(three times the loss, per-token losses) and the gradients."""

  def scaled(x_ND, head_VD):
    total, loss_N = fn(x_ND, head_VD, target_N, valid_N)
    return 3 * total, loss_N

  return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True))(x_ND, head_VD)


def plain(x_ND, head_VD, target_N, valid_N):
  loss_N = optax.softmax_cross_entropy_with_integer_labels(x_ND @ head_VD.T, target_N)
  return jnp.sum(loss_N * valid_N), loss_N


@pytest.mark.parametrize("rows", [1, 4, N, 100])
def test_any_chunk_is_the_plain_loss(rows):
  chunked = lambda *a: lm.cross_entropy_sum(*a, chunk_bytes=4 * V * rows)
  assert_close(outcome(chunked, *arguments()), outcome(plain, *arguments()))


def test_evaluation_without_gradients_gives_the_same_sums():
  got = lm.cross_entropy_sum(*arguments(), chunk_bytes=4 * V * 4)
  assert_close(got, plain(*arguments()))


def test_float64_to_the_last_digits_and_bfloat16_to_its_first():
  with jax.enable_x64(True):
    args = arguments(jnp.float64)
    got, want = outcome(lm.cross_entropy_sum, *args), outcome(plain, *args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
  x_ND, head_VD, *rest = arguments(jnp.bfloat16)
  got = outcome(lm.cross_entropy_sum, x_ND, head_VD, *rest)
  want = outcome(plain, x_ND.astype(jnp.float32), head_VD.astype(jnp.float32), *rest)
  assert got[1][0].dtype == jnp.bfloat16 and got[0][0].dtype == jnp.float32
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


def test_the_logits_of_all_rows_are_never_stored():
  text = jax.jit(jax.grad(lambda x, *a: lm.cross_entropy_sum(x, *a, 4 * V * 4)[0]))
  assert f"f32[{N},{V}]" not in text.lower(*arguments()).compile().as_text()


def test_large_logits_do_not_overflow():
  x_ND, head_VD, target_N, valid_N = arguments()
  total, _ = lm.cross_entropy_sum(1e4 * x_ND, head_VD, target_N, valid_N)
  assert np.isfinite(float(total))


@pytest.mark.parametrize("vocab", [12, 11])
@pytest.mark.parametrize("rows", [12, 13])
def test_a_mesh_gives_the_same(rows, vocab):
  """Rows and vocabulary cut over it, or whole where it does not divide them."""
  x_ND, head_VD, target_N, valid_N = arguments()
  args = (x_ND[:rows], jnp.pad(head_VD, ((0, vocab - V), (0, 0))), target_N[:rows], valid_N[:rows])
  want = outcome(plain, *args)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    cut = NamedSharding(mesh, P("tensor" if vocab % 2 == 0 else None, "fsdp"))
    x_ND, head_VD, *rest = args
    chunked = lambda *a: lm.cross_entropy_sum(*a, chunk_bytes=4 * vocab * 2)
    got = outcome(chunked, x_ND, jax.device_put(head_VD, cut), *rest)
  assert_close(got, want)
