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
from pallas_kernels.expert_ffn import tpu_tiles as ffn_tiles
from pallas_kernels.grouped_matmul import cases, tpu, tpu_aot, tpu_tiles

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
