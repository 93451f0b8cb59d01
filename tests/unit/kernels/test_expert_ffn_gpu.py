"""The expert FFN on GPUs against its definition: interpreted, compiled for an H200, or run."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.core.plan import RouterInputs
from moejax.dispatch import sort
from moejax.layers import moe
from moejax.routers import topk
from pallas_kernels import aot_gpu, expert_ffn
from pallas_kernels.expert_ffn import cases, gpu_aot, ref, triton
from pallas_kernels.grouped_matmul.cases import MODELS

TINY = {part: triton.Config(16, 16, 16, 4, 2, 2) for part in triton.PARTS}
AOT = pytest.mark.skipif(aot_gpu.missing() is not None, reason=str(aot_gpu.missing()))


def outcome_of(swiglu):
  """(y, gradients of everything real) of a loss that bends less than 16 bits round y."""

  def outcome(real, index):
    def loss(*real):
      y_ND = swiglu(*real, *index)
      return jnp.sum(jnp.sin(y_ND / 4)), y_ND

    (_, y_ND), grads = jax.value_and_grad(loss, argnums=tuple(range(5)), has_aux=True)(*real)
    return y_ND, grads

  return jax.jit(outcome)


GOT = outcome_of(functools.partial(triton.swiglu, configs=TINY, interpret=True))
WANT = outcome_of(ref.swiglu)


def arguments(case, seed=0):
  rng = np.random.default_rng(seed)
  N, K, E, D, F = case.N, case.K, case.E, case.D, case.F
  shapes = [(N, D), (E, D, F), (E, D, F), (E, F, D), (N * K,)]
  scales = 1.0, D**-0.5, D**-0.5, F**-0.5, 1.0
  return [c * rng.normal(size=s) for c, s in zip(scales, shapes, strict=True)], cases.rows(case)


def check(got_of, case, dtype=np.float32, close=2e-5, seed=0):
  """In the given dtype, with NaN in what nobody may read, against float64."""
  real, index = arguments(case, seed)
  used = int(index[2].sum())
  dirty, token_M = [a.astype(dtype) for a in real], np.array(index[0])
  dirty[4] = real[4].astype(np.float32)
  dirty[4][used:], token_M[used:] = np.nan, -1
  got = got_of([*map(jnp.asarray, dirty)], [jnp.asarray(token_M), *map(jnp.asarray, index[1:])])
  with jax.enable_x64(True):
    want = WANT([jnp.asarray(a.astype(dtype), jnp.float64) for a in real], index)
    want = jax.tree.map(np.asarray, want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == (dtype if a.ndim > 1 else np.float32)
    scale = np.abs(b).max() or 1
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=close * scale)


def test_it_is_the_definition_forward_and_backward():
  for seed, case in enumerate(cases.TEST.values()):
    check(GOT, case, seed=seed)


def test_so_it_is_in_several_blocks_of_every_width_and_in_16_bits():
  case = cases.Case(lambda n: (n % 3, np.where(n % 5 == 0, -1, 2)), D=37, F=53)
  check(GOT, case)
  check(GOT, case, jnp.dtype(jnp.bfloat16), 3e-2)


@pytest.mark.slow
def test_any_experts_may_be_empty():
  for busy in itertools.product((False, True), repeat=8):
    ids = np.flatnonzero(busy)
    pick = lambda n, i, ids=ids: ids[(n + i) % len(ids)] if len(ids) else 0 * n - 1
    check(GOT, cases.Case(lambda n, pick=pick: (pick(n, 0), pick(n, 1)), N=23, E=8))


def test_a_forward_pass_alone_keeps_nothing(monkeypatch):
  made, by_rows = {}, triton.by_rows
  record = lambda *args, **how: made.update({args[0]: len(args[5])}) or by_rows(*args, **how)
  monkeypatch.setattr(triton, "by_rows", record)
  real, index = arguments(cases.TEST["spread"])
  args = [jnp.asarray(a, jnp.float32) for a in real] + [jnp.asarray(a) for a in index]
  run = functools.partial(triton.swiglu, configs=TINY, interpret=True)
  np.testing.assert_allclose(jax.jit(run)(*args), ref.swiglu(*args), rtol=0, atol=1e-5)
  assert made == {"up": 1, "down": 1}


def test_what_is_not_done_is_said_while_tracing():
  with pytest.raises(NotImplementedError, match="no kernel for rows of int8"):
    jax.eval_shape(triton.swiglu, *gpu_aot.arguments("olmoe_1b_7b", 16, jnp.int8))


@pytest.mark.aot
@AOT
@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_compiles_for_an_h200_and_spills_nothing(model):
  found = gpu_aot.kernels(model)
  for part in triton.PARTS:
    kernel = found[f"expert_ffn_{part}"]
    assert kernel.wgmma > 0 and kernel.spilled == 0
    assert kernel.registers * kernel.threads <= 65536 and kernel.shared <= 227 * 1024


@pytest.mark.aot
@AOT
def test_rows_are_nowhere_sorted():
  """What a layer keeps and what it makes: pre-activations and rows on their way to their tokens."""
  args = gpu_aot.arguments("qwen3_30b_a3b")
  M, D, F = 131072, 2048, 768
  forward = aot_gpu.compiled(triton.swiglu, *args).memory_analysis().temp_size_in_bytes
  assert forward < 2 * M * (F + D) + 2**23
  both = aot_gpu.compiled(gpu_aot.gradients, *args).memory_analysis().temp_size_in_bytes
  assert both < 2 * M * (4 * F + D) + 2 * 2 * 16384 * D + 2**23


@pytest.mark.aot
@AOT
def test_a_layer_compiled_for_an_h200_has_the_kernels_of_a_gpu():
  """The machine of the context mesh decides, not the one that compiles."""
  layer = moe.Layer(moe.Config(topk.Config(), sort.Config(), 8, 512))
  x_ND, ctx = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16), RouterInputs(seq_len=512)
  wide_ND = jax.ShapeDtypeStruct(x_ND.shape, jnp.float32)
  variables = jax.eval_shape(layer.init, jax.random.key(0), wide_ND, ctx)

  def grads(variables, x_ND):
    def loss(params, x_ND):
      params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
      y_ND = layer.apply({**variables, "params": params}, x_ND, ctx)[0]
      return jnp.sum(jnp.square(y_ND.astype(jnp.float32)))

    return jax.grad(loss, (0, 1))(variables["params"], x_ND)

  text = aot_gpu.compiled(grads, variables, x_ND).as_text()
  for part in triton.PARTS:
    assert f"expert_ffn_{part}" in text
  assert "unpermute" in text and "ragged-dot" not in text
  assert jax.default_backend() == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_on_a_gpu(dtype):
  if jax.default_backend() != "gpu":
    pytest.skip("needs a GPU")
  for load in cases.TEST.values():
    case = load._replace(N=1003, D=264, F=392)
    check(outcome_of(expert_ffn.swiglu), case, jnp.dtype(dtype), 3e-2)
