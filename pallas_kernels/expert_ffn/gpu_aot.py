"""What an H200's compiler says of the fused expert FFN, rows and tokens, and routing.

python -m pallas_kernels.expert_ffn.gpu_aot docs/kernels.md    the page's table again

Nothing is run, and nothing is said of time.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

from pallas_kernels import aot_gpu
from pallas_kernels.expert_ffn import triton
from pallas_kernels.grouped_matmul.cases import MODELS
from pallas_kernels.grouped_matmul.tpu_aot import markdown

BEGIN, END = "<!-- gpu_aot: begin -->", "<!-- gpu_aot: end -->"


def arguments(model: str, tokens: int = 16384, dtype=jnp.bfloat16) -> tuple:
  """What the layer of a model is given, without numbers."""
  D, F, E, K = MODELS[model]
  array, M = jax.ShapeDtypeStruct, tokens * K
  weights = array((E, D, F), dtype), array((E, D, F), dtype), array((E, F, D), dtype)
  tables = array((M,), jnp.int32), array((tokens, K), jnp.int32), array((E,), jnp.int32)
  return array((tokens, D), dtype), *weights, array((M,), jnp.float32), *tables


def gradients(*args, function=triton.swiglu):
  """Of everything that has one, so that forward and backward kernels are in a program."""

  def loss(*real):
    return jnp.sum(jnp.square(function(*real, *args[5:]).astype(jnp.float32)))

  return jax.grad(loss, tuple(range(5)))(*args[:5])


def kernels(model: str, dtype=jnp.bfloat16) -> dict[str, aot_gpu.Kernel]:
  """Those of a layer's forward and backward pass, by their names."""
  found = aot_gpu.kernels(functools.partial(gradients), *arguments(model, dtype=dtype))
  return {kernel.name.rstrip("_0123456789"): kernel for kernel in found}


def rows(models=tuple(MODELS)):
  """A row for each model and kernel."""
  for model in models:
    found = kernels(model)
    for part in triton.PARTS:
      kernel = found[f"expert_ffn_{part}"]
      yield {
        "model": model,
        "kernel": part,
        "threads": kernel.threads,
        "shared KiB": kernel.shared // 1024,
        "registers": kernel.registers,
        "spilled bytes": kernel.spilled,
      }


def main(page: str) -> None:
  """Replaces what is between the two marks of a page."""
  path = pathlib.Path(page)
  before, rest = path.read_text().split(BEGIN)
  table = markdown(list(rows()))
  path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
  main(*sys.argv[1:])
