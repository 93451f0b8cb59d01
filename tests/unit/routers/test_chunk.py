"""Chunk routing: its limits, and that it stays inside documents."""

import dataclasses

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle.routers import chunk as loops

from moejax.core.plan import RouterInputs
from moejax.core.plugin import Wrong
from moejax.routers import chunk, topk

B, T, D, E = 2, 12, 6, 4
N = B * T
INPUTS = RouterInputs(x_ND=drawn.normal(0, N, D), seq_len=T, num_experts=E)
VARIABLES = drawn.variables(chunk.Router(chunk.Config()), INPUTS)
BARE = {"params": {"gate_DE": VARIABLES["params"]["gate_DE"]}}


def logits(inputs, **fields):
  cfg = chunk.Config(**fields)
  variables = VARIABLES if cfg.pool == "previous" else BARE
  return jax.jit(lambda inputs: chunk.Router(cfg).apply(variables, inputs)[0])(inputs)


def test_chunks_of_one_are_token_routing():
  plain_NE = topk.Router(topk.Config()).apply(BARE, INPUTS)[0]
  for pool in ("first", "mean"):
    np.testing.assert_array_equal(logits(INPUTS, chunk=1, pool=pool), plain_NE)


def test_a_chunk_of_the_whole_row_is_sequence_routing():
  """The linear router of the mean token; by the chunk before, one learnt choice for all."""
  mean_BD = INPUTS.x_ND.reshape(B, T, D).mean(1)
  want_BE = mean_BD @ BARE["params"]["gate_DE"]
  got_NE = logits(INPUTS, chunk=T, pool="mean")
  np.testing.assert_allclose(got_NE.reshape(B, T, E), want_BE[:, None].repeat(T, 1), atol=1e-5)
  params = VARIABLES["params"]
  always_NE = np.tile(params["first_D"] @ params["gate_DE"], (N, 1))
  np.testing.assert_allclose(logits(INPUTS, chunk=T), always_NE, atol=1e-5)


@pytest.mark.parametrize("pool", ["previous", "first", "mean"])
def test_documents_in_a_row_are_routed_as_if_alone(pool):
  segment_T = np.repeat([1, 2, 3], [5, 1, T - 6])
  packed = INPUTS.replace(segment_N=jnp.tile(segment_T, B), valid_N=jnp.ones(N, bool))
  got_BTE = np.reshape(logits(packed, chunk=3, pool=pool), (B, T, E))
  cfg = dataclasses.replace(chunk.Config(), chunk=3, pool=pool)
  for row in range(B):
    for segment in (1, 2, 3):
      here_T = segment_T == segment
      x_ND = np.asarray(INPUTS.x_ND)[row * T : (row + 1) * T][here_T]
      alone = RouterInputs(x_ND=x_ND, seq_len=len(x_ND), valid_N=np.ones(len(x_ND), bool))
      want_NE = loops.logits(VARIABLES, alone, cfg)
      np.testing.assert_allclose(got_BTE[row, here_T], want_NE, atol=1e-5)


def test_padding_has_no_say_in_a_mean():
  valid_N = jnp.arange(N) % 3 > 0
  masked = INPUTS.replace(valid_N=valid_N)
  other = masked.replace(x_ND=jnp.where(valid_N[:, None], INPUTS.x_ND, 9.0))
  for pool in ("previous", "mean"):
    got_NE, want_NE = (logits(inputs, chunk=4, pool=pool) for inputs in (other, masked))
    np.testing.assert_array_equal(got_NE, want_NE)


def test_it_says_which_pools_are_causal_and_refuses_empty_chunks():
  assert [chunk.causal(chunk.Config(pool=p)) for p in ("previous", "first", "mean")] == [1, 1, 0]
  with pytest.raises(Wrong, match="chunk: chunk is 0"):
    chunk.Config(chunk=0)
