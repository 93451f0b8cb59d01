"""Grouped matmul: windows on a CPU against ragged_dot and a dense matmul of the same FLOPs.

`all` is forward and both gradients. "of dense" is the rate as a part of the dense matmul's; for E
experts that holds one matrix, where the grouped matmul reads E and writes E gradients.
"of floor" is that against the larger of the dense matmul and the time to stream the weights of the
experts that have rows, once per pass, at the rate of a copy. `ragged` stays empty where ragged_dot
needs more than 2 GiB of temporaries.

--cases=E32,E128   some of the cases only
--rounds=9         times each program is run
"""

OPTIONS = {"cases": "", "rounds": 9}
BETTER = {"fwd of dense": "higher", "all of dense": "higher", "ours temp MB": "lower"}


def run(options: dict):
  """One row per case, as they come."""
  from moejax.core import plugin  # noqa: PLC0415  jax is imported after runtime.prepare()
  from pallas_kernels.grouped_matmul import bench, cases  # noqa: PLC0415

  names = options["cases"].split(",") if options["cases"] else list(cases.BENCH)
  for name in names:
    if name not in cases.BENCH:
      raise plugin.Wrong(
        f"bench grouped_matmul: no case {name!r}. {plugin.hint(name, cases.BENCH)}"
      )
  for name in names:
    yield bench.measure(name, options["rounds"])
