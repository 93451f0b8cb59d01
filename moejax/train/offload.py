"""Moments of the optimiser in the memory of the host, from one step to the next.

Paper:  Ren et al. 2021 (ZeRO-Offload), arXiv:2101.06840; Kim et al. 2021 (Z-code M3),
        arXiv:2109.10465, which has E+Z-Off+M; Shen et al. 2022 (SE-MoE), arXiv:2205.10034.

They come to the device for the update and go back, while a step's other work goes on. The numbers
are those of a run without it. The update itself runs on the device: Adam on the host's cores, as
ZeRO-Offload has it, would save the way there and back, and is not built.
"""

import dataclasses

import jax

HOST = "pinned_host"


def moments(template):
  """The template of a state with its moments on the host; counters stay."""
  away = lambda leaf: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind(HOST)
  )
  moved = jax.tree.map(lambda leaf: away(leaf) if leaf.shape else leaf, template.opt_state)
  return dataclasses.replace(template, opt_state=moved)


def fetching(step):
  """step(state, batch) for a state whose moments are on the host."""
  near = lambda leaf: jax.device_put(leaf, jax.memory.Space.Device) if leaf.shape else leaf

  def fetched(state, batch):
    return step(dataclasses.replace(state, opt_state=jax.tree.map(near, state.opt_state)), batch)

  fetched.__name__ = "step"  # what the compiled program is called
  return fetched
