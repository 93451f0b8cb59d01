"""The TPU kernels go through the TPU's own compiler, for four generations, without a TPU."""

import functools

import jax
import jax.numpy as jnp
import pytest

from moejax.core.plan import RouterInputs
from moejax.dispatch import sort
from moejax.layers import moe
from moejax.routers import topk
from pallas_kernels import aot
from pallas_kernels.expert_ffn import tpu_aot as ffn_aot
from pallas_kernels.expert_ffn import tpu_tiles as ffn_tiles
from pallas_kernels.grouped_matmul import cases, tpu, tpu_aot, tpu_tiles
from pallas_kernels.permute import tpu as permute

pytestmark = [
  pytest.mark.aot,
  pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing())),
]


@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_every_pass_compiles_within_vmem_at_the_sizes_of_a_model(chip, model):
  """The compiler refuses what does not fit; there is nothing else in memory than maps of tiles."""
  mesh, case = aot.mesh(chip), cases.of_model(model)
  for part in tpu_aot.PASSES:
    program = aot.compile(getattr(tpu, part), *tpu_aot.arguments(part, case), mesh=mesh)
    assert program.kernels == [f"grouped_matmul_{part}"]
    assert program.temporary < 8 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_so_do_those_of_its_projections_down(chip, model):
  mesh, case = aot.mesh(chip), cases.of_model(model, down=True)
  for part in tpu_aot.PASSES:
    program = aot.compile(getattr(tpu, part), *tpu_aot.arguments(part, case), mesh=mesh)
    assert program.kernels == [f"grouped_matmul_{part}"]


@pytest.mark.parametrize("chip", aot.CHIPS)
def test_sizes_that_divide_nothing_are_neither_padded_nor_refused(chip):
  mesh, case = aot.mesh(chip), cases.Case(1003, 200, 315, 5)
  for dtype in (jnp.float32, jnp.bfloat16):
    for part in tpu_aot.PASSES:
      program = aot.compile(getattr(tpu, part), *tpu_aot.arguments(part, case, dtype), mesh=mesh)
      assert program.kernels == [f"grouped_matmul_{part}"]
      assert "stablehlo.pad" not in program.text


def test_inputs_in_parts_compile():
  mesh, case = aot.mesh("v5p"), cases.Case(2048, 1000, 512, 8)
  parts = functools.partial(tpu.forward, tile=tpu.Tiles(128, 384, 256))
  assert aot.compile(parts, *tpu_aot.arguments("forward", case), mesh=mesh).kernels


def test_a_tile_beyond_vmem_is_refused_by_the_compiler():
  """So that the tests above say something."""
  mesh, case = aot.mesh("v5p"), cases.of_model("deepseek_v3", tokens=1024)
  tile = tpu.Tiles(128, 7168, 2048)
  assert tpu_tiles.vmem("forward", tile, 2) > 56 * 2**20
  with pytest.raises(Exception, match="(?i)vmem"):
    huge = functools.partial(tpu.forward, tile=tile)
    aot.compile(huge, *tpu_aot.arguments("forward", case), mesh=mesh)


@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_an_expert_ffn_and_its_gradients_compile_within_vmem(chip, model):
  """For one of eight owners of experts. Besides words, nothing but hidden rows is in memory."""
  sizes = cases.MODELS[model]
  program = aot.compile(ffn_aot.both, *ffn_aot.arguments(sizes), mesh=aot.mesh(chip))
  assert {f"expert_ffn_{part}" for part in ffn_tiles.PARTS} <= set(program.kernels)
  assert program.kernels.count("unpermute") == 2
  M, N = ffn_aot.TOKENS * sizes.K // ffn_aot.OWNERS, ffn_aot.TOKENS
  hidden, rows, tokens = (2 * n * width for n, width in [(M, sizes.F), (M, sizes.D), (N, sizes.D)])
  sorted_ = program.kernels.count("permute")  # those that would be fetched too often
  lanes = 4 * N * 128 * 3  # a table [N, K] takes whole lanes
  assert program.temporary < 6 * hidden + (2 + sorted_) * rows + 4 * tokens + lanes


# each program once: what was compiled for another machine cannot be read back from JAX's cache
@pytest.mark.parametrize("D, K", sorted({(m.D, m.K) for m in cases.MODELS.values()}))
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_rows_and_tokens_compile(chip, D, K):
  mesh, N, array = aot.mesh(chip), 2048, jax.ShapeDtypeStruct
  x_ND, y_MD = array((N, D), jnp.bfloat16), array((N * K, D), jnp.bfloat16)
  gate_M, token_M = array((N * K,), jnp.float32), array((N * K,), jnp.int32)
  row_NK = array((N, K), jnp.int32)
  for run, args, kernel in (
    (permute.rows, (x_ND, token_M), "permute"),
    (permute.tokens, (y_MD, gate_M, row_NK), "unpermute"),
    (permute.d_tokens, (x_ND, y_MD, gate_M, token_M), "unpermute_gradient"),
  ):
    program = aot.compile(run, *args, mesh=mesh)
    assert program.kernels == ["words", kernel]
    assert "ragged" not in program.text and "scatter" not in program.text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_an_expert_ffn_of_odd_sizes_compiles(chip, dtype):
  """Rows that are no whole words of two numbers are float32 while they are fetched."""
  sizes = cases.Published(200, 315, 40, 3)
  args = ffn_aot.arguments(sizes, dtype, tokens=1016)
  program = aot.compile(ffn_aot.both, *args, mesh=aot.mesh(chip))
  assert {f"expert_ffn_{part}" for part in ffn_tiles.PARTS} <= set(program.kernels)
  assert "words" not in program.kernels


@pytest.mark.parametrize("rows", [False, True], ids=["weights", "weights_and_rows"])
@pytest.mark.parametrize("dtype, blocks", [("int8", 1), ("float8_e4m3fn", 16)])
@pytest.mark.parametrize("chip", aot.CHIPS)
def test_weights_of_8_bits_compile(chip, dtype, blocks, rows):
  case = cases.of_model("qwen3_30b_a3b")
  args = tpu_aot.narrow(case, dtype, blocks, rows)
  program = aot.compile(tpu.quantised, *args, mesh=aot.mesh(chip))
  assert program.kernels == ["grouped_matmul_quantised"]
  lanes = 128 * 4 * case.M if rows else 0  # a scale of a row takes 128 of them
  assert program.temporary < lanes + 8 * 2**20  # the weights are nowhere wide


def layer_for_a_v5p(dtype):
  """The program of a layer's gradients; its parameters are float32, and cut to `dtype`."""
  layer = moe.Layer(moe.Config(topk.Config(), sort.Config(), 8, 512))
  x_ND, ctx = jax.ShapeDtypeStruct((1024, 256), jnp.float32), RouterInputs(seq_len=512)
  variables = jax.eval_shape(layer.init, jax.random.key(0), x_ND, ctx)

  def grads(variables, x_ND):
    def loss(params, x_ND):
      params = jax.tree.map(lambda p: p.astype(dtype), params)
      y_ND = layer.apply({**variables, "params": params}, x_ND, ctx)[0]
      return jnp.sum(y_ND.astype(jnp.float32))

    return jax.grad(loss, (0, 1))(variables["params"], x_ND)

  return aot.compile(grads, variables, x_ND.update(dtype=dtype), mesh=aot.mesh("v5p"))


def test_a_layer_compiled_for_a_v5p_has_the_kernels_of_a_tpu():
  """The machine of the context mesh decides, not the one that compiles."""
  program = layer_for_a_v5p(jnp.bfloat16)
  assert {f"expert_ffn_{part}" for part in ffn_tiles.PARTS} <= set(program.kernels)
  assert {"routing_top_k", "routing_ranks", "routing_sorted", "unpermute"} <= set(program.kernels)
  assert not any("grouped_matmul" in name for name in program.kernels)
  assert "ragged_dot" not in program.text
  assert jax.default_backend() == "cpu"
