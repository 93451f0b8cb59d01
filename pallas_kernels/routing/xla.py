"""Routing in plain XLA; on CPUs with a choice of the highest scores and a sort that suit them.

A vector unit finds the maximum of a row quickly, but not where it is. So the low bits of each score
are replaced by its index, which makes all of a row different and every round one maximum of those
below the last. Where scores differ in those low bits alone the order may come out wrong: a count
tells, and the few tokens that it concerns are chosen again by the library's partial sort.

The sort counts: rows are cut into lanes which walk side by side, and each keeps how many rows of an
expert it has met. Sums over lanes then say where each row belongs, in M steps of arithmetic.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import target
from pallas_kernels.routing import library
from pallas_kernels.routing.rule import Rule, gates, scores

AGAIN = 32  # tokens that are chosen again at a time
LANES = 64
SMALL = 1 << 14  # scores below which one call of the library is as fast, and compiled sooner
LOWEST, HIGHEST = -0x7F000000, 0x7EFFFFFF  # keys that a finite number which is not tiny can carry
SMALLEST = 0x00800000  # the bits of the smallest such number
SIGN = -(2**31)


def route(logit_NE, bias_E, valid_N, rule: Rule):
  """(expert_NK, gate_NK, place_NK, size_E); of a token that is not valid -1, 0 and M = N * K."""
  (N, E), valid_N1 = logit_NE.shape, valid_N[:, None] > 0
  logit_NE = jnp.where(valid_N1, logit_NE, 0)
  sought_NE = scores(logit_NE, rule.score) + bias_E[None]
  if rule.groups > 1:
    sought_NE = _limited(sought_NE, rule)
  expert_NK = jnp.where(valid_N1, top_k(sought_NE, rule.k), -1)
  expert_M = jnp.where(expert_NK < 0, E, expert_NK).ravel()
  _, place_M, size_E = sort(expert_M, E)
  place_NK = jnp.where(expert_NK < 0, N * rule.k, place_M.reshape(N, rule.k))
  return expert_NK, gates(logit_NE, expert_NK, rule), place_NK, size_E


def _limited(sought_NE, rule):
  sought_NGe = sought_NE.reshape(len(sought_NE), rule.groups, -1)
  group_NG = jnp.sum(lax.top_k(sought_NGe, rule.best)[0], axis=2)
  group_NI = lax.top_k(group_NG, rule.keep)[1]
  id_1G = jnp.arange(rule.groups)[None]
  kept_NG = functools.reduce(
    jnp.logical_or, [id_1G == group_NI[:, i, None] for i in range(rule.keep)]
  )
  return jnp.where(kept_NG[:, :, None], sought_NGe, -jnp.inf).reshape(sought_NE.shape)


def top_k(score_NE: jax.Array, k: int) -> jax.Array:
  """The ids of the k highest scores as lax.top_k has them: the lower id first among equals.

  >>> top_k(jnp.tile(jnp.array([[.1, .6, .3, .6]]), (4096, 1)), 3)[0].tolist()
  [1, 3, 2]
  """
  N, E = score_NE.shape
  if not does(N, E, k, score_NE.dtype):
    return library.top_k(score_NE, k)
  score_NE = lax.stop_gradient(score_NE).astype(jnp.float32)
  b = _block(E, k)
  if N <= b:
    return _choose(score_NE, k)
  blocks = -(-N // b)
  score_NE = jnp.pad(score_NE, ((0, blocks * b - N), (0, 0)))
  expert_NK = lax.map(functools.partial(_choose, k=k), score_NE.reshape(blocks, b, E))
  return expert_NK.reshape(-1, k)[:N]


def does(N: int, E: int, k: int, dtype) -> bool:
  """Whether it is faster here than a partial sort, and worth its compilation.

  >>> does(4096, 128, 8, jnp.float32), does(64, 4, 2, jnp.float32)
  (True, False)
  """
  if target.platform() != "cpu" or target.is_cut():  # nor can devices share a walk over blocks
    return False
  few = E <= 256 or (E <= 1024 and _parts(E, k) > 1)
  return few and k <= 16 and N * E >= SMALL and jnp.finfo(dtype).bits <= 32


def _block(E, k):
  """Tokens whose scores stay in the cache from round to round.

  Measured: 2^15 scores, twice as many take twice the time of each. Of 32 ids or fewer 2^11, as
  the rounds are short then and the compiler would share each of them among threads.

  >>> [_block(E, 8) for E in (8, 32, 64, 96, 256, 512)]
  [256, 64, 512, 256, 128, 256]
  """
  if _parts(E, k) > 1:
    return 256
  return 1 << ((1 << (15 if E > 32 else 11)) // E).bit_length() - 1


def _parts(E, k):
  """How many neighbours-in-stride form a group, of which the best are sought first."""
  return 8 if E > 256 and E % 8 == 0 and E // 8 >= k else 1


def _choose(score_NE, k):
  key_NE, E = _key(score_NE), score_NE.shape[1]
  packed_NE = _pack(key_NE)
  parts = _parts(E, k)
  if parts > 1:  # the best k ids lie in the best k groups
    G = E // parts
    best_NG = functools.reduce(jnp.maximum, jnp.split(packed_NE, parts, axis=1))
    group_NK1 = (_unpack(_rounds(best_NG, k), E) % G)[:, :, None]
    at_NI = (group_NK1 + G * jnp.arange(parts, dtype=jnp.int32)[None, None]).reshape(-1, parts * k)
    packed_NE = jnp.take_along_axis(packed_NE, at_NI, axis=1, mode="promise_in_bounds")
  return _corrected(_unpack(_rounds(packed_NE, k), E), score_NE, key_NE)


def _key(score_NE):
  """Integers in the order of the scores, which is total: -0 is below 0, NaN above everything.

  >>> _key(jnp.array([[-1., -0., 0., 1., jnp.nan]])).argsort().tolist()
  [[0, 1, 2, 3, 4]]
  """
  bits_NE = lax.bitcast_convert_type(score_NE, jnp.int32)
  return bits_NE ^ ((bits_NE >> 31) & 0x7FFFFFFF)


def _pack(key_NE):
  """Numbers in the order of the keys, lower ids first, if those without their low bits differ."""
  E = key_NE.shape[1]
  low = (E - 1).bit_length()
  code_1E = E - 1 - jnp.arange(E, dtype=jnp.int32)[None]
  packed_NE = (jnp.clip(key_NE, LOWEST, HIGHEST) >> low << low) | code_1E
  sign_NE = packed_NE >> 31
  return lax.bitcast_convert_type(
    ((packed_NE ^ sign_NE) + SMALLEST) | (sign_NE & SIGN), jnp.float32
  )


def _unpack(packed_NK, E):
  """The ids.

  >>> _unpack(_pack(_key(jnp.array([[2., -3., 0.]]))), 3).tolist()
  [[0, 1, 2]]
  """
  bits_NK = lax.bitcast_convert_type(packed_NK, jnp.int32)
  code_NK = (bits_NK ^ (bits_NK >> 31)) & ((1 << (E - 1).bit_length()) - 1)
  return E - 1 - code_NK


def _rounds(packed_NE, k):
  """The k highest numbers of each row, which differ."""

  def step(above_N1, _):
    below_NE = jnp.where(packed_NE < above_N1, packed_NE, -jnp.inf)
    best_N1 = jnp.max(below_NE, axis=1, keepdims=True)
    return best_N1, best_N1[:, 0]

  start_N1 = jnp.full((len(packed_NE), 1), jnp.inf, jnp.float32)
  return lax.scan(step, start_N1, None, length=k)[1].T


def _corrected(expert_NK, score_NE, key_NE):
  """The ids, those of a token again if its scores differ in their low bits alone."""
  N, K = expert_NK.shape
  key_NK = jnp.take_along_axis(key_NE, expert_NK, axis=1, mode="promise_in_bounds")
  least_N1 = key_NK[:, -1:]
  count = lambda key: jnp.sum(jnp.where(key > least_N1, 1.0, 0.0), axis=1)
  unordered_N = jnp.any(key_NK[:, 1:] > key_NK[:, :-1], axis=1)
  wrong_N = unordered_N | (count(key_NE) != count(key_NK))
  place_N = jnp.where(wrong_N, jnp.cumsum(wrong_N.astype(jnp.int32)) - 1, N + AGAIN)
  token_I = jnp.full((N + AGAIN,), N, jnp.int32)
  token_I = token_I.at[place_N].set(jnp.arange(N, dtype=jnp.int32), mode="drop")

  def again(state):
    i, expert_NK = state
    token_b = lax.dynamic_slice_in_dim(token_I, i, AGAIN)
    best_bK = lax.top_k(score_NE.at[token_b].get(mode="clip"), K)[1]
    return i + AGAIN, expert_NK.at[token_b].set(best_bK, mode="drop")

  more = lambda state: state[0] < wrong_N.sum()
  return lax.while_loop(more, again, (jnp.int32(0), expert_NK))[1]


def sort(expert_M: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(order_M, place_M, size_E): rows by expert and in their order within one, where each went.

  Rows of expert `num_experts` are those of none: they come last and are counted nowhere.

  >>> [a[:3].tolist() for a in sort(jnp.arange(2048) % 4, 3)]
  [[0, 4, 8], [0, 512, 1024], [512, 512, 512]]
  """
  M, U = len(expert_M), num_experts + 1
  small = M < max(SMALL // 8, 4 * U)  # or most of the tables would stay empty
  if small or target.platform() != "cpu" or target.is_cut():
    return library.sort(expert_M, num_experts)
  lanes = min(LANES, M)
  steps = -(-M // lanes)
  padded = jnp.pad(expert_M.astype(jnp.int32), (0, steps * lanes - M), constant_values=U - 1)
  expert_SL, lane_L = padded.reshape(lanes, steps).T, jnp.arange(lanes)

  def step(met_LU, expert_L):
    met_L = met_LU.at[lane_L, expert_L].get(mode="promise_in_bounds")
    at = met_LU.at[lane_L, expert_L]
    return at.set(met_L + 1, unique_indices=True, mode="promise_in_bounds"), met_L

  met_LU, met_SL = lax.scan(step, jnp.zeros((lanes, U), jnp.int32), expert_SL)
  until_LU = jnp.cumsum(met_LU, axis=0)
  size_U = until_LU[-1]
  first_LU = until_LU - met_LU + (jnp.cumsum(size_U) - size_U)[None]
  place_SL = first_LU.at[lane_L[None], expert_SL].get(mode="promise_in_bounds") + met_SL
  place_M = place_SL.T.ravel()[:M]
  at = jnp.zeros(M, jnp.int32).at[place_M]
  order_M = at.set(jnp.arange(M, dtype=jnp.int32), unique_indices=True, mode="promise_in_bounds")
  return order_M, place_M, size_U[:-1]
