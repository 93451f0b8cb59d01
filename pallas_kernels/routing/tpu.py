"""Routing in Pallas for TPUs: one pass over the logits in blocks of tokens.

Blocks come one after the other, and a running count of rows per expert stays in VMEM. Inside a
block the row of a token within its expert is a product of matrices: a triangle of ones times the
0-1 table of choices, exact in float32. Where an expert's rows begin is known only after the last
block, so that a second kernel adds it: as many comparisons as a choice, where a gather from a small
table would cost far more.

A layer whose ids are changed between choice and dispatch uses the two halves: `top_k`, and `sort`,
in which rows lie along lanes, so that the table of choices stands on its head.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.routing.rule import Rule

TOKENS = 128  # of a block
LANES = 128
ROWS = 256  # of a block of `sort`
MOST = {"experts": 1024, "choices": 16}


def route(logit_NE, bias_E, valid_N, rule: Rule, interpret=False):
  """(expert_NK, gate_NK, place_NK, size_E); of a token that is not valid -1, 0 and M = N * K."""
  N, E = logit_NE.shape
  _check(E, rule.k, N * rule.k)
  blocks, width = -(-N // TOKENS), -(-E // LANES) * LANES
  rest = ((0, blocks * TOKENS - N), (0, width - E))
  logit_NW = jnp.pad(logit_NE.astype(jnp.float32), rest)
  bias_1W = jnp.pad(bias_E.astype(jnp.float32)[None], ((0, 0), rest[1]))
  valid_N1 = jnp.pad(valid_N.astype(jnp.int32)[:, None], (rest[0], (0, 0)))
  by_token = lambda width: pl.BlockSpec((TOKENS, width), lambda i: (i, 0))
  whole = pl.BlockSpec((1, width), lambda i: (0, 0))
  shape = lambda width, dtype: jax.ShapeDtypeStruct((blocks * TOKENS, width), dtype)
  expert_NK, gate_NK, rank_NK, size_1W = pl.pallas_call(
    functools.partial(_kernel, rule, E),
    grid=(blocks,),
    in_specs=[by_token(width), whole, by_token(1)],
    out_specs=[by_token(rule.k), by_token(rule.k), by_token(rule.k), whole],
    out_shape=[
      shape(rule.k, jnp.int32),
      shape(rule.k, jnp.float32),
      shape(rule.k, jnp.int32),
      jax.ShapeDtypeStruct((1, width), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
    interpret=interpret,
    name="routing",
  )(logit_NW, bias_1W, valid_N1)
  first_1W = jnp.cumsum(size_1W, axis=1) - size_1W  # exact: fewer than 2^24 rows, see above
  place_NK = pl.pallas_call(
    functools.partial(_places, N * rule.k),
    grid=(blocks,),
    in_specs=[by_token(rule.k), by_token(rule.k), whole],
    out_specs=by_token(rule.k),
    out_shape=shape(rule.k, jnp.int32),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=interpret,
    name="routing_places",
  )(expert_NK, rank_NK, first_1W)
  size_E = size_1W[0, :E].astype(jnp.int32)
  return expert_NK[:N], gate_NK[:N].astype(logit_NE.dtype), place_NK[:N], size_E


def _check(E, K, M):
  if E > MOST["experts"] or K > MOST["choices"]:
    raise NotImplementedError(f"{K} choices of {E} experts; {MOST} at most are done")
  if M >= 2**24:
    raise NotImplementedError(f"{M} rows; float32 counts fewer than 2^24")


def top_k(score_NE, k: int, interpret=False):
  """The ids of the k highest scores, the lower one first among equals; NaN counts as infinity."""
  N, E = score_NE.shape
  _check(E, k, N * k)
  if score_NE.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"scores are {score_NE.dtype}; float32 and bfloat16 are done")
  blocks, width = -(-N // TOKENS), -(-E // LANES) * LANES
  score_NW = jnp.pad(score_NE, ((0, blocks * TOKENS - N), (0, width - E)))

  def kernel(score_ref, expert_ref):
    score_NW = score_ref[...].astype(jnp.float32)
    score_NW = jnp.where(jnp.isnan(score_NW), jnp.inf, score_NW)
    id_NW = lax.broadcasted_iota(jnp.int32, score_NW.shape, 1)
    open_NW, ids = id_NW < E, []
    for _choice in range(k):
      id_N1 = _argmax(score_NW, open_NW, id_NW)
      open_NW = open_NW & (id_NW != id_N1)
      ids.append(id_N1.astype(jnp.float32))
    expert_ref[...] = _columns(ids).astype(jnp.int32)

  return pl.pallas_call(
    kernel,
    grid=(blocks,),
    in_specs=[pl.BlockSpec((TOKENS, width), lambda i: (i, 0))],
    out_specs=pl.BlockSpec((TOKENS, k), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((blocks * TOKENS, k), jnp.int32),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=interpret,
    name="routing_top_k",
  )(score_NW)[:N]


def sort(expert_M, num_experts: int, interpret=False):
  """(order_M, place_M, size_E): rows by expert and in their order within one, where each went.

  The order is that of expert and row in one integer, sorted by the compiler; where each row went
  and how many an expert has would be a scatter each, and are counted instead.
  """
  M, U = len(expert_M), num_experts + 1  # the last one is nobody
  _check(num_experts, 1, M)
  if U * M >= 2**31:
    raise NotImplementedError(f"{M} rows of {U} experts; one integer of 32 bits holds both")
  expert_M, b = expert_M.astype(jnp.int32), ROWS
  blocks, height = -(-M // b), -(-U // 16) * 16
  expert_T1b = jnp.pad(expert_M, (0, blocks * b - M), constant_values=height).reshape(blocks, 1, b)

  def table(expert_ref):
    """Which expert a row has, [experts, rows]."""
    return lax.broadcasted_iota(jnp.int32, (height, b), 0) == expert_ref[0]

  def ranks(expert_ref, rank_ref, size_ref):
    @pl.when(pl.program_id(0) == 0)
    def _():
      size_ref[...] = jnp.zeros_like(size_ref)

    is_Ub = table(expert_ref)
    hit_Ub = jnp.where(is_Ub, 1.0, 0.0)
    at = lambda axis: lax.broadcasted_iota(jnp.int32, (b, b), axis)
    before_bb = jnp.where(at(0) < at(1), 1.0, 0.0).astype(jnp.bfloat16)
    met_Ub = jnp.dot(hit_Ub.astype(jnp.bfloat16), before_bb, preferred_element_type=jnp.float32)
    met_Ub += size_ref[...]
    rank_ref[0] = jnp.sum(jnp.where(is_Ub, met_Ub, 0.0), axis=0, keepdims=True).astype(jnp.int32)
    size_ref[...] += jnp.sum(hit_Ub, axis=1, keepdims=True)

  def places(expert_ref, rank_ref, first_ref, place_ref):
    first_Ub = jnp.where(table(expert_ref), first_ref[...], 0.0)
    first_1b = jnp.sum(first_Ub, axis=0, keepdims=True)
    place_ref[0] = rank_ref[0] + first_1b.astype(jnp.int32)

  lanes = pl.BlockSpec((1, 1, b), lambda i: (i, 0, 0))
  whole = pl.BlockSpec((height, 1), lambda i: (0, 0))
  in_lanes = jax.ShapeDtypeStruct((blocks, 1, b), jnp.int32)
  rank_T1b, size_U1 = pl.pallas_call(
    ranks,
    grid=(blocks,),
    in_specs=[lanes],
    out_specs=[lanes, whole],
    out_shape=[in_lanes, jax.ShapeDtypeStruct((height, 1), jnp.float32)],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
    interpret=interpret,
    name="routing_ranks",
  )(expert_T1b)
  place_T1b = pl.pallas_call(
    places,
    grid=(blocks,),
    in_specs=[lanes, lanes, whole],
    out_specs=lanes,
    out_shape=in_lanes,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=interpret,
    name="routing_sorted",
  )(expert_T1b, rank_T1b, jnp.cumsum(size_U1, axis=0) - size_U1)
  row_M = jnp.arange(M, dtype=jnp.int32)
  order_M = jnp.sort(expert_M * M + row_M) % M
  return order_M, place_T1b.ravel()[:M], size_U1[:num_experts, 0].astype(jnp.int32)


def _places(unused, expert_ref, rank_ref, first_ref, place_ref):
  """The row within an expert, after the rows of the experts before it."""
  expert_NK = expert_ref[...]
  shape = (len(expert_NK), first_ref.shape[1])
  first_NW, id_NW = first_ref[...] + jnp.zeros(shape), lax.broadcasted_iota(jnp.int32, shape, 1)
  chosen = [_pick(first_NW, id_NW == expert_NK[:, k : k + 1]) for k in range(expert_NK.shape[1])]
  place_NK = _columns(chosen).astype(jnp.int32) + rank_ref[...]
  place_ref[...] = jnp.where(expert_NK < 0, unused, place_NK)


def _kernel(rule, E, logit_ref, bias_ref, valid_ref, expert_ref, gate_ref, rank_ref, size_ref):
  @pl.when(pl.program_id(0) == 0)
  def _():
    size_ref[...] = jnp.zeros_like(size_ref)

  logit_NW = logit_ref[...]
  valid_N1 = valid_ref[...] > 0
  id_NW = lax.broadcasted_iota(jnp.int32, logit_NW.shape, 1)
  real_NW = id_NW < E
  score_NW = _scores(jnp.where(valid_N1, logit_NW, 0), real_NW, rule.score)
  sought_NW = score_NW + bias_ref[...]
  sought_NW = jnp.where(jnp.isnan(sought_NW), jnp.inf, sought_NW)  # chosen first, as everywhere
  open_NW = _limited(sought_NW, real_NW, id_NW // max(E // rule.groups, 1), rule)

  ids, gates, hit_NW = [], [], jnp.zeros_like(score_NW)
  for _choice in range(rule.k):
    is_NW = id_NW == _argmax(sought_NW, open_NW, id_NW)
    open_NW = open_NW & ~is_NW
    ids.append(is_NW)
    gates.append(_pick(score_NW, is_NW))
    hit_NW = jnp.where(is_NW & valid_N1, 1.0, hit_NW)
  total_N1 = functools.reduce(jnp.add, gates) if rule.renormalise else 1.0
  total_N1 = jnp.where(total_N1 == 0, 1.0, total_N1)

  rank_NW = size_ref[...] + _before(hit_NW)
  size_ref[...] += jnp.sum(hit_NW, axis=0, keepdims=True)
  columns = lambda values, other: _columns([jnp.where(valid_N1, v, other) for v in values])
  expert_ref[...] = columns([_pick(id_NW.astype(jnp.float32), m) for m in ids], -1.0).astype(int)
  gate_ref[...] = columns([rule.scale * gate_N1 / total_N1 for gate_N1 in gates], 0.0)
  rank_ref[...] = columns([_pick(rank_NW, is_NW) for is_NW in ids], 0.0).astype(int)


def _scores(logit_NW, real_NW, score):
  if score == "none":
    return logit_NW
  if score == "sigmoid":
    return jax.nn.sigmoid(logit_NW)
  top_N1 = jnp.max(jnp.where(real_NW, logit_NW, -jnp.inf), axis=1, keepdims=True)
  power_NW = jnp.where(real_NW, jnp.exp(logit_NW - top_N1), 0)
  return power_NW / jnp.sum(power_NW, axis=1, keepdims=True)


def _limited(sought_NW, real_NW, group_NW, rule):
  """Where a token may choose: in the groups whose best scores sum highest."""
  if rule.groups == 1:
    return real_NW
  id_NW = lax.broadcasted_iota(jnp.int32, sought_NW.shape, 1)
  speaks: list = []
  for g in range(rule.groups):
    open_NW = real_NW & (group_NW == g)
    total_N1 = jnp.zeros((len(id_NW), 1), jnp.float32)
    for _ in range(rule.best):
      is_NW = id_NW == _argmax(sought_NW, open_NW, id_NW)
      total_N1 += _pick(sought_NW, is_NW)
      open_NW &= ~is_NW
    speaks.append(total_N1)
  kept_NW = jnp.zeros(sought_NW.shape, jnp.float32)
  for g, own_N1 in enumerate(speaks):
    ahead_N1 = functools.reduce(
      jnp.add,
      [
        jnp.where((s_N1 >= own_N1) if h < g else (s_N1 > own_N1), 1.0, 0.0)
        for h, s_N1 in enumerate(speaks)
      ],
    )
    kept_NW = jnp.where((group_NW == g) & (ahead_N1 < rule.keep), 1.0, kept_NW)
  return real_NW & (kept_NW > 0)


def _argmax(value_NW, open_NW, id_NW):
  """The lowest id among the highest open values."""
  best_N1 = jnp.max(jnp.where(open_NW, value_NW, -jnp.inf), axis=1, keepdims=True)
  at_NW = open_NW & (value_NW == best_N1)
  far = float(value_NW.shape[1])
  id_N1 = jnp.min(jnp.where(at_NW, id_NW.astype(jnp.float32), far), axis=1, keepdims=True)
  return id_N1.astype(jnp.int32)


def _pick(value_NW, is_NW):
  return jnp.sum(jnp.where(is_NW, value_NW, 0.0), axis=1, keepdims=True)


def _before(hit_NW):
  """How many tokens above in the block have the same expert."""
  n = len(hit_NW)
  row = lambda axis: lax.broadcasted_iota(jnp.int32, (n, n), axis)
  above_NN = jnp.where(row(1) < row(0), 1.0, 0.0).astype(jnp.bfloat16)
  hit_NW = hit_NW.astype(jnp.bfloat16)
  return jnp.dot(above_NN, hit_NW, preferred_element_type=jnp.float32)


def _columns(values):
  """[N, 1] each, side by side."""
  n, K = len(values[0]), len(values)
  k_NK = lax.broadcasted_iota(jnp.int32, (n, K), 1)
  value_NK = jnp.zeros((n, K), jnp.float32)
  for k, value_N1 in enumerate(values):
    value_NK = jnp.where(k_NK == k, value_N1, value_NK)
  return value_NK
