"""Routing in Pallas Triton, for GPUs: one pass over the logits, and nothing that depends on order.

A program scores, limits and chooses for a block of tokens which stays in registers, and counts how
many rows each expert has of this block; the row of a token within them is a sum over the tokens
above. A second kernel adds up the counts of the blocks before, block by block. So a place is known
without an atomic counter, whose order would be another one in each run.

Scores are compared as integers in the order of the scores, of which the lowest is no number: it
stands for experts that are chosen already, or closed to a token.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import choose
from pallas_kernels.routing.rule import Rule

HELD = 32  # scores that a thread keeps
MOST = {"experts": 1024, "choices": 16}
DTYPES = ("float32", "bfloat16", "float16")
CLOSED = -(2**31)
COLUMNS, BLOCKS = 32, 32  # experts and blocks that are added up at once


def route(logit_NE, bias_E, valid_N, rule: Rule, *, config=None, interpret=False):
  """(expert_NK, gate_NK, place_NK, size_E); of a token that is not valid -1, 0 and M = N * K."""
  (N, E), K, dtype = logit_NE.shape, rule.k, logit_NE.dtype
  if E > MOST["experts"] or K > MOST["choices"]:
    raise NotImplementedError(f"{K} choices of {E} experts; {MOST} at most are done")
  if dtype.name not in DTYPES or not N:
    raise NotImplementedError(f"triton: no kernel for {N} tokens with {dtype} logits")
  each, groups = pl.next_power_of_2(E // rule.groups), pl.next_power_of_2(rule.groups)
  tried, shape = candidates(groups * each), {"N": N, "E": E, "K": K}
  found = config or choose.config("routing", "route", shape, dtype, "triton", tried)
  tokens, warps = found or tried[0]
  blocks = pl.cdiv(N, tokens)
  by_choice = lambda dtype: jax.ShapeDtypeStruct((N, K), dtype)
  expert_NK, gate_NK, rank_NK, count_BE = pl.pallas_call(
    functools.partial(_choose, rule, tokens, (groups, each)),
    out_shape=[
      by_choice(jnp.int32),
      by_choice(dtype),
      by_choice(jnp.int32),
      jax.ShapeDtypeStruct((blocks, E), jnp.int32),
    ],
    grid=(blocks,),
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
    interpret=interpret,
    name="routing",
  )(logit_NE, bias_E.astype(jnp.float32), valid_N.astype(jnp.int32))
  before_BE, size_E = _before(count_BE, interpret)
  first_E = jnp.cumsum(size_E) - size_E
  expert = jnp.maximum(expert_NK, 0)
  block_N1 = (jnp.arange(N, dtype=jnp.int32) // tokens)[:, None]
  place_NK = first_E[expert] + before_BE[block_N1, expert] + rank_NK
  return expert_NK, gate_NK, jnp.where(expert_NK < 0, N * K, place_NK), size_E


def tokens_of(width: int) -> tuple[int, int]:
  """(tokens, warps) of a block with so many scores for each token.

  >>> tokens_of(8), tokens_of(128), tokens_of(1024)
  ((128, 4), (32, 4), (8, 8))
  """
  warps = 8 if width > 256 else 4
  return min(128, 32 * HELD * warps // width), warps


def candidates(width: int) -> list[tuple[int, int]]:
  """(tokens, warps) that a tuner tries, the heuristic first: no more scores for a thread.

  >>> candidates(8), candidates(1024)
  ([(128, 4), (64, 4), (64, 2), (128, 8)], [(8, 8), (4, 8), (4, 4)])
  """
  tokens, warps = tokens_of(width)
  more = [(tokens // 2, warps), (tokens // 2, warps // 2), (tokens, 2 * warps)]
  held = lambda config: config[0] * width // (32 * config[1])
  fits = lambda config: 4 <= config[0] <= 128 and config[1] <= 8 and held(config) >= 4
  return [(tokens, warps), *filter(fits, more)]


def _choose(rule, tokens, shape, logit_ref, bias_ref, valid_ref, *out_refs):
  """Choices and gates of a block of tokens, their rank within their expert, rows of each expert.

  Groups and the experts of one are padded to powers of two, so that a row is [groups, each].
  """
  expert_ref, gate_ref, rank_ref, count_ref = out_refs
  (N, E), block = logit_ref.shape, pl.program_id(0)
  own, (groups, each) = E // rule.groups, shape
  at_W = jnp.arange(groups * each, dtype=jnp.int32)
  real_W = (at_W % each < own) & (at_W < rule.groups * each)
  id_W = jnp.where(real_W, at_W // each * own + at_W % each, E)
  row_T = block * tokens + jnp.arange(tokens, dtype=jnp.int32)
  rows = pl.ds(block * tokens, tokens)
  inside_T = row_T < N
  valid_T = plgpu.load(valid_ref.at[rows], mask=inside_T, other=0) > 0
  mask_TW = valid_T[:, None] & real_W[None]
  columns, at = id_W, (row_T[:, None], id_W[None])
  if rule.groups == 1 or own == each:  # neighbours in memory, and known as such
    columns, at = pl.ds(0, groups * each), (rows, pl.ds(0, groups * each))
  logit_TW = plgpu.load(logit_ref.at[at], mask=mask_TW, other=0.0)
  score_TW = _scores(logit_TW.astype(jnp.float32), real_W[None], rule.score)
  sought_TW = score_TW + plgpu.load(bias_ref.at[columns], mask=real_W, other=0.0)[None]
  key_TW = jnp.where(real_W[None], _key(sought_TW), CLOSED)
  if rule.groups > 1:
    key_TW = _limited(key_TW, sought_TW, rule, shape)

  width = pl.next_power_of_2(rule.k)
  at_1K = jnp.arange(width, dtype=jnp.int32)[None]
  id_TW = jnp.broadcast_to(id_W[None], key_TW.shape)
  pick = lambda value_TW, is_TW: jnp.sum(jnp.where(is_TW, value_TW, 0), axis=1)[:, None]

  def choose(k, state):
    key_TW, hit_TW, expert_TK, gate_TK = state
    is_TW = at_W[None] == lax.argmax(key_TW, 1, jnp.int32)[:, None]
    expert_TK = jnp.where(at_1K == k, pick(id_TW, is_TW), expert_TK)
    gate_TK = jnp.where(at_1K == k, pick(score_TW, is_TW), gate_TK)
    return jnp.where(is_TW, CLOSED, key_TW), jnp.where(is_TW, 1, hit_TW), expert_TK, gate_TK

  none = lambda dtype: jnp.zeros((tokens, width), dtype)
  state = (key_TW, jnp.zeros(key_TW.shape, jnp.int32), none(jnp.int32), none(jnp.float32))
  _, hit_TW, expert_TK, gate_TK = lax.fori_loop(0, rule.k, choose, state)
  hit_TW = jnp.where(mask_TW, hit_TW, 0)
  above_TW = jnp.cumsum(hit_TW, axis=0) - hit_TW

  def ranked(k, rank_TK):
    own_T1 = jnp.sum(jnp.where(at_1K == k, expert_TK, 0), axis=1)[:, None]
    return jnp.where(at_1K == k, pick(above_TW, id_TW == own_T1), rank_TK)

  rank_TK = lax.fori_loop(0, rule.k, ranked, none(jnp.int32))
  if rule.renormalise:
    total_T1 = jnp.sum(gate_TK, axis=1)[:, None]
    gate_TK = gate_TK / jnp.where(total_T1 == 0, 1.0, total_T1)
  valid_TK = jnp.broadcast_to(valid_T[:, None], gate_TK.shape)
  mask_TK = inside_T[:, None] & (at_1K < rule.k)
  for ref, value_TK, other in (
    (expert_ref, expert_TK, -1), (gate_ref, rule.scale * gate_TK, 0.0), (rank_ref, rank_TK, 0),
  ):  # fmt: skip
    value_TK = jnp.where(valid_TK, value_TK, other).astype(ref.dtype)
    plgpu.store(ref.at[rows, pl.ds(0, width)], value_TK, mask=mask_TK)
  plgpu.store(count_ref.at[block, columns], jnp.sum(hit_TW, axis=0), mask=real_W)


def _scores(logit_TW, real_1W, score):
  if score == "none":
    return logit_TW
  if score == "sigmoid":
    return jax.nn.sigmoid(logit_TW)
  top_T1 = jnp.max(jnp.where(real_1W, logit_TW, -jnp.inf), axis=1)[:, None]
  power_TW = jnp.where(real_1W, jnp.exp(logit_TW - top_T1), 0.0)
  return power_TW / jnp.sum(power_TW, axis=1)[:, None]


def _key(value):
  """Integers in the order of numbers: both zeros are one, what is no number is above all.

  >>> key = _key(jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 2.0, jnp.inf, jnp.nan]))
  >>> (jnp.diff(key) > 0).tolist(), bool(key[0] > CLOSED)
  ([True, True, False, True, True, False], True)
  """
  value = jnp.where(value == value, jnp.where(value == 0, 0.0, value), jnp.inf)
  bits = lax.bitcast_convert_type(value, jnp.int32)
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _limited(key_TW, sought_TW, rule, shape):
  """The keys, closed outside of the groups whose best scores sum highest."""
  tokens, (groups, each) = len(key_TW), shape
  key_TGe = left_TGe = key_TW.reshape(tokens, groups, each)
  sought_TGe = jnp.where(sought_TW == sought_TW, sought_TW, jnp.inf).reshape(key_TGe.shape)
  at_e, total_TG = jnp.arange(each, dtype=jnp.int32), jnp.zeros((tokens, groups), jnp.float32)
  for _ in range(rule.best):
    is_TGe = at_e[None, None] == lax.argmax(left_TGe, 2, jnp.int32)[:, :, None]
    total_TG += jnp.sum(jnp.where(is_TGe, sought_TGe, 0.0), axis=2)
    left_TGe = jnp.where(is_TGe, CLOSED, left_TGe)
  at_1G = jnp.arange(groups, dtype=jnp.int32)[None]
  left_TG = jnp.where(at_1G < rule.groups, _key(total_TG), CLOSED)
  kept_TG = jnp.zeros(left_TG.shape, jnp.int32)
  for _ in range(rule.keep):
    is_TG = at_1G == lax.argmax(left_TG, 1, jnp.int32)[:, None]
    left_TG, kept_TG = jnp.where(is_TG, CLOSED, left_TG), jnp.where(is_TG, 1, kept_TG)
  kept_TGe = jnp.broadcast_to(kept_TG[:, :, None], key_TGe.shape)
  return jnp.where(kept_TGe > 0, key_TGe, CLOSED).reshape(key_TW.shape)


def _before(count_BE, interpret):
  """(before_BE, size_E): what the blocks before have of an expert, and what all have.

  >>> before_BE, size_E = _before(jnp.array([[1, 0], [2, 3], [4, 5]]), interpret=True)
  >>> before_BE.tolist(), size_E.tolist()
  ([[0, 0], [1, 0], [3, 3]], [7, 8])
  """
  B, E = count_BE.shape

  def kernel(count_ref, before_ref, size_ref):
    first = pl.program_id(0) * COLUMNS
    columns, own_C = pl.ds(first, COLUMNS), first + jnp.arange(COLUMNS, dtype=jnp.int32) < E

    def step(i, sum_C):
      own_b = i * BLOCKS + jnp.arange(BLOCKS, dtype=jnp.int32) < B
      at, mask_bC = (pl.ds(i * BLOCKS, BLOCKS), columns), own_b[:, None] & own_C[None]
      count_bC = plgpu.load(count_ref.at[at], mask=mask_bC, other=0)
      before_bC = sum_C[None] + jnp.cumsum(count_bC, axis=0) - count_bC
      plgpu.store(before_ref.at[at], before_bC, mask=mask_bC)
      return sum_C + jnp.sum(count_bC, axis=0)

    size_C = lax.fori_loop(0, pl.cdiv(B, BLOCKS), step, jnp.zeros(COLUMNS, jnp.int32))
    plgpu.store(size_ref.at[columns], size_C, mask=own_C)

  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.int32)
  return pl.pallas_call(
    kernel,
    out_shape=[shape(B, E), shape(E)],
    grid=(pl.cdiv(E, COLUMNS),),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="routing_before",
  )(count_BE)
