"""Times of several programs, measured in turns so that a busy machine is unfair to none."""

import statistics
import time

import jax


def in_turns(
  programs: dict, rounds: int = 9, patience: float = 2.0, clock=time.perf_counter
) -> dict:
  """name -> median milliseconds of `programs`: name -> function without arguments, warmed up here.

  A program that needs more than `patience` seconds is run once. With the clock time.process_time
  it is the work of all cores, which other processes disturb less.

  >>> sorted(in_turns({"a": lambda: jax.numpy.ones(2), "b": lambda: jax.numpy.ones(3)}, rounds=2))
  ['a', 'b']
  """
  for program in programs.values():
    jax.block_until_ready(program())
  times = {name: [] for name in programs}
  for _ in range(rounds):
    for name, program in programs.items():
      if times[name] and times[name][0] > patience:
        continue
      start = clock()
      jax.block_until_ready(program())
      times[name].append(clock() - start)
  return {name: 1e3 * statistics.median(seen) for name, seen in times.items()}
