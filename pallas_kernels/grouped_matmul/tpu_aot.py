"""The TPU kernels at the sizes of published models, through the compiler of four generations.

python -m pallas_kernels.grouped_matmul.tpu_aot docs/kernels.md [CHIP ...]    the page's table again

Nothing is run. What a row says of time is the compiler's estimate for the operations of the pass
and for the numbers that its tiles move, on a unit that never waits; nobody measured it.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

from pallas_kernels import aot
from pallas_kernels.grouped_matmul import cases, quantised, tpu, tpu_tiles

PASSES = ("forward", "d_lhs", "d_rhs")
BEGIN, END = "<!-- tpu_aot: begin -->", "<!-- tpu_aot: end -->"


def arguments(part: str, case: cases.Case, dtype=jnp.bfloat16) -> tuple:
  """What a pass is given at a case's sizes, without numbers."""
  M, D, F, E = case[:4]
  array = jax.ShapeDtypeStruct
  x_MD, w_EDF, g_MF = array((M, D), dtype), array((E, D, F), dtype), array((M, F), dtype)
  size_E = array((E,), jnp.int32)
  first, second = {"forward": (x_MD, w_EDF), "d_lhs": (g_MF, w_EDF), "d_rhs": (x_MD, g_MF)}[part]
  return first, second, size_E


def narrow(case: cases.Case, dtype, blocks: int = 1, rows: bool = False) -> tuple:
  """The same of the quantised pass; `rows` says if these have 8 bits too."""
  x_MD, w_EDF, size_E = arguments("forward", case)
  w = jax.eval_shape(functools.partial(quantised.quantise, dtype=dtype, blocks=blocks), w_EDF)
  if rows:
    x_MD = jax.eval_shape(functools.partial(quantised.quantise, dtype=dtype), x_MD)
  return x_MD, w, size_E


def tile(part: str, case: cases.Case, mesh, itemsize: int = 2) -> tpu_tiles.Tiles:
  """What the heuristic takes for a chip."""
  I, O = (case.F, case.D) if part == "d_lhs" else (case.D, case.F)
  with jax.set_mesh(mesh):
    return tpu_tiles.heuristic(part, {"M": case.M, "E": case.E, "I": I, "O": O}, itemsize)


def rows(chips=tuple(aot.CHIPS), names=tuple(cases.MODELS)):
  """A row for each chip, model and pass, as they come."""
  for chip in chips:
    mesh = aot.mesh(chip)
    for name in names:
      for part in PASSES:
        case = cases.of_model(name)
        program = aot.compile(getattr(tpu, part), *arguments(part, case), mesh=mesh)
        of = tile(part, case, mesh)
        inputs = case.F if part == "d_lhs" else case.D
        used = tpu_tiles.vmem(part, of, 2)
        yield {
          "chip": chip,
          "model": name,
          "pass": part,
          "rows": of.rows,
          "inputs": f"{of.inputs} of {inputs}",
          "outputs": of.outputs,
          "VMEM MiB": round(used / 2**20, 1),
          "estimated ms": round(1e3 * program.seconds, 2),
          "estimated TFLOP/s": round(program.flops / program.seconds / 1e12),
        }


def markdown(table: list[dict]) -> str:
  """The rows as a table.

  >>> print(markdown([{"chip": "v5e", "rows": 128}]))
  | chip | rows |
  |---|---|
  | v5e | 128 |
  """
  line = lambda cells: f"| {' | '.join(map(str, cells))} |"
  head = [line(table[0]), "|" + "---|" * len(table[0])]
  return "\n".join([*head, *(line(row.values()) for row in table)])


def replace(page: str, begin: str, end: str, table: list[dict]) -> None:
  """Puts a table between the two marks of a page."""
  path = pathlib.Path(page)
  before, rest = path.read_text().split(begin)
  path.write_text(f"{before}{begin}\n\n{markdown(table)}\n\n{end}{rest.split(end)[1]}")


def main(page: str, *chips: str) -> None:
  """Replaces what is between the two marks of a page."""
  replace(page, BEGIN, END, list(rows(chips or tuple(aot.CHIPS))))


if __name__ == "__main__":
  main(*sys.argv[1:])
