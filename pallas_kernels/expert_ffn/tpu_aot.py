"""The expert FFN of published models through the TPU compiler of four generations.

python -m pallas_kernels.expert_ffn.tpu_aot docs/kernels.md [CHIP ...]    the page's table again

Nothing is run. Programs are those of one of eight owners of the experts, as the largest models do
not fit one chip; tiles do not depend on that, and bytes are counted for the whole batch on one.
"""

import sys

import jax
import jax.numpy as jnp

from pallas_kernels import aot
from pallas_kernels.expert_ffn import tpu, tpu_tiles
from pallas_kernels.grouped_matmul import cases, tpu_aot
from pallas_kernels.grouped_matmul import tpu_tiles as matmul_tiles

BEGIN, END = "<!-- ffn_aot: begin -->", "<!-- ffn_aot: end -->"
TOKENS, OWNERS = 16384, 8
GIB = 1 << 30


def arguments(model: cases.Published, dtype=jnp.bfloat16, tokens: int = TOKENS) -> tuple:
  """What an owner of an eighth of the experts is given, without numbers.

  >>> [a.shape for a in arguments(cases.MODELS["qwen3_30b_a3b"])[1:3]]
  [(16, 2048, 768), (16, 2048, 768)]
  """
  (D, F, E, K), array = model, jax.ShapeDtypeStruct
  e, M = E // OWNERS, tokens * K // OWNERS
  up, down = array((e, D, F), dtype), array((e, F, D), dtype)
  tables = array((M,), jnp.int32), array((tokens, K), jnp.int32), array((e,), jnp.int32)
  return array((tokens, D), dtype), up, up, down, array((M,), jnp.float32), *tables


def forward(*args):
  """Tokens to tokens."""
  return tpu.swiglu(*args)


def both(*args):
  """(y_ND, the five gradients)."""
  y_ND, pull = jax.vjp(lambda *real: tpu.swiglu(*real, *args[5:]), *args[:5])
  return y_ND, pull(y_ND)


def chosen(model: cases.Published, tokens: int = TOKENS) -> dict:
  """pass -> (tiles, sizes) on the chip of the context mesh."""
  D, F, E, K = model
  sizes = {name: tpu.sizes(name, tokens * K, E, D, F) for name in tpu_tiles.PARTS}
  return {name: (tpu_tiles.heuristic(name, shape), shape) for name, shape in sizes.items()}


def sorts(passes: dict) -> list[str]:
  """What is sorted beforehand after all."""
  return [n for n, parts in tpu_tiles.READERS.items() if tpu_tiles.sorted_first(parts, passes)]


def moved(model: cases.Published, tokens: int = TOKENS) -> tuple[int, int]:
  """Numbers between HBM and VMEM, forward and backward: as one operation, and as separate ones.

  The second is the least of it: rows that a kernel has sorted, matmuls, activations and sums, each
  of which reads what the one before wrote.
  """
  D, F, E, K = model
  M, N = tokens * K, tokens
  sums = M * D + N * D
  words = 3 * 2 * N * D  # of x, twice, and of dy
  passes = chosen(model, tokens)
  together = sum(tpu_tiles.moved(name, *how) for name, how in passes.items())
  together += 2 * M * D * len(sorts(passes))

  def matmul(part, I, O):
    shape = {"M": M, "E": E, "I": I, "O": O}
    return matmul_tiles.moved(part, matmul_tiles.heuristic(part, shape), shape)

  ahead = 2 * M * D + 2 * matmul("forward", D, F) + 3 * M * F + matmul("forward", F, D) + sums
  of_y = 3 * M * D + matmul("d_lhs", D, F) + matmul("d_rhs", F, D) + 5 * M * F
  of_x = 2 * matmul("d_lhs", F, D) + 3 * M * D + 2 * matmul("d_rhs", D, F) + sums
  return together + 2 * sums + words, ahead + of_y + of_x


def rows(chips=tuple(aot.CHIPS), names=tuple(cases.MODELS)):
  """A row for each chip and model, as they come."""
  for chip in chips:
    mesh = aot.mesh(chip)
    for name in names:
      model = cases.MODELS[name]
      with jax.set_mesh(mesh):
        tiles, (one, many) = chosen(model), moved(model)
      used = max(tpu_tiles.vmem(part, of, 2) for part, (of, _) in tiles.items())
      programs = [aot.compile(f, *arguments(model), mesh=mesh) for f in (forward, both)]
      told = lambda p: round(1e3 * p.seconds, 2) if p.seconds > 0 else "-"
      yield {
        "chip": chip,
        "model": name,
        **{part: f"{of.rows} {of.inputs} {of.outputs}" for part, (of, _) in tiles.items()},
        "VMEM MiB": round(used / 2**20, 1),
        "sorted": ", ".join(sorts(tiles)) or "-",
        "GiB moved": round(2 * one / GIB, 1),
        "apart": round(2 * many / GIB, 1),
        "forward ms": told(programs[0]),
        "both ms": told(programs[1]),
      }


def main(page: str, *chips: str) -> None:
  """Replaces what is between the two marks of a page."""
  tpu_aot.replace(page, BEGIN, END, list(rows(chips or tuple(aot.CHIPS))))


if __name__ == "__main__":
  main(*sys.argv[1:])
