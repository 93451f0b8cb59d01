"""The expert FFN as an operation, and its TPU kernels against the definition in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from jax.experimental.pallas import tpu as pltpu
from test_choose import context

from pallas_kernels import expert_ffn as op
from pallas_kernels.expert_ffn import cases, ref, tpu, tpu_tiles
from pallas_kernels.expert_ffn.tpu_tiles import Tiles

NAMES = ("x_ND", "wg_EDF", "wu_EDF", "wo_EFD", "gate_M")


def tiles(D, b=8, inputs=3, outputs=4, half=None):
  """Tiles that divide nothing, so that all inputs come in parts and last blocks are not full."""
  half = half or D
  return {
    "gate_up": Tiles(b, D, outputs),
    "down": Tiles(b, inputs, half),
    "d_hidden": Tiles(b, D, outputs),
    "d_rows": Tiles(b, inputs, half),
    "d_gate_up": Tiles(b, half, outputs),
    "d_down": Tiles(b, outputs, half),
  }


def arguments(case, dtype=np.float32):
  """(what has gradients, indices, the cotangent) of a case."""
  rng = np.random.default_rng(0)
  N, K, E, D, F = case.N, case.K, case.E, case.D, case.F
  shapes = [(N, D), (E, D, F), (E, D, F), (E, F, D), (N * K,), (N, D)]
  *real, dy_ND = (0.5 * rng.normal(size=shape).astype(dtype) for shape in shapes)
  return real, cases.rows(case), dy_ND


@functools.partial(jax.jit, static_argnums=0)
def outcome(swiglu, real, index, dy_ND):
  """y and five gradients."""
  y_ND, pull = jax.vjp(lambda *real: swiglu(*real, *index), *real)
  return y_ND, *pull(dy_ND)


def wanted(real, index, dy_ND):
  with jax.enable_x64(True):
    wide = lambda a: np.asarray(a, np.float64)
    outs = outcome(ref.swiglu, [*map(wide, real)], [*index], wide(dy_ND))
    return [*map(np.asarray, outs)]


def assert_near(got, want, share=2e-5):
  for name, a, b in zip(("y_ND", *NAMES), got, want, strict=True):
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=share * max(1, np.abs(b).max()), err_msg=name)


SMALL = functools.partial(tpu.swiglu, tile=tiles(5), interpret=True)


OFTEN = functools.partial(tpu.swiglu, tile=tiles(5, outputs=1), interpret=True)


@pytest.mark.parametrize("case", cases.TEST)
def test_the_kernels_are_the_definition(case):
  args = arguments(cases.TEST[case])
  assert_near(outcome(SMALL, *args), wanted(*args))


def test_rows_that_would_be_fetched_too_often_are_sorted_first():
  args = arguments(cases.TEST["holes"])
  assert_near(outcome(OFTEN, *args), wanted(*args))
  real, index, dy_ND = args
  names = [str(jax.make_jaxpr(lambda *real: f(*real, *index))(*real)) for f in (OFTEN, SMALL)]  # noqa: B023
  assert ["name=permute" in text for text in names] == [True, False]


def test_what_nobody_reads_may_hold_anything():
  """Gates of unused rows, and whole tokens and their cotangents where no choice is used."""
  real, index, dy_ND = arguments(cases.TEST["holes"])
  used, dead = int(index[2].sum()), (index[1] == len(index[0])).all(1)
  assert 0 < dead.sum() and used < len(index[0])
  want = wanted(real, index, np.where(dead[:, None], 0, dy_ND))
  real[0][dead], real[4][used:], dy_ND[dead] = np.nan, np.nan, np.nan
  got = outcome(SMALL, real, index, dy_ND)
  assert_near(got, want)
  assert (np.asarray(got[1])[dead] == 0).all() and (np.asarray(got[5])[used:] == 0).all()


def test_every_pattern_of_empty_groups():
  N, E, D, F, rng = 29, 8, 5, 7, np.random.default_rng(1)
  shapes = [(N, D), (E, D, F), (E, D, F), (E, F, D), (N,), (N, D)]
  *real, dy_ND = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
  for pattern in itertools.product((0, 1), repeat=E):
    size_E, token_M = np.array(pattern) * rng.integers(1, 4, E), rng.permutation(N)
    row_N = np.argsort(token_M)
    index = token_M, np.where(row_N < size_E.sum(), row_N, N)[:, None], size_E
    assert_near(outcome(SMALL, real, index, dy_ND), by_hand(real, index, dy_ND), 1e-5)


def by_hand(real, index, dy_ND):
  """The same expert by expert, for K = 1, with the gradients written out."""
  x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M = (a.astype(np.float64) for a in real)
  y_ND, grads = (
    np.zeros_like(x_ND),
    [np.zeros_like(a) for a in (x_ND, wg_EDF, wu_EDF, wo_EFD, gate_M)],
  )
  ends = np.cumsum(index[2])
  for e, (last, size) in enumerate(zip(ends, index[2], strict=True)):
    rows = slice(last - size, last)
    at, gate = index[0][rows], gate_M[rows, None]
    x, dy = x_ND[at], dy_ND[at].astype(np.float64)
    g, u = x @ wg_EDF[e], x @ wu_EDF[e]
    s = 1 / (1 + np.exp(-g))
    h, d = g * s * u, dy @ wo_EFD[e].T
    dg, du = gate * d * u * (s + g * s * (1 - s)), gate * d * g * s
    y_ND[at] = gate * (h @ wo_EFD[e])
    grads[0][at] = dg @ wg_EDF[e].T + du @ wu_EDF[e].T
    grads[1][e], grads[2][e], grads[3][e] = x.T @ dg, x.T @ du, (gate * h).T @ dy
    grads[4][rows] = (d * h).sum(1)
  return y_ND, *grads


WIDE = cases.Case(lambda n: (n % 3, np.where(n % 4 == 0, -1, (n + 1) % 3)), D=512)


def test_words_of_two_numbers_and_halves_of_rows():
  """bfloat16, whose rows are fetched in parts where matrices come out, against float64."""
  real, index, dy_ND = arguments(WIDE)
  short = lambda a: jnp.asarray(0.3 * a, jnp.bfloat16)
  real, dy_ND = [*map(short, real[:4]), jnp.asarray(real[4])], short(dy_ND)
  kernels = functools.partial(tpu.swiglu, tile=tiles(512, 16, half=256), interpret=True)
  got = outcome(kernels, real, index, dy_ND)
  assert [a.dtype for a in got] == [jnp.bfloat16] * 5 + [jnp.float32]
  want = wanted(real, index, dy_ND)
  for name, a, b in zip(("y_ND", *NAMES), got, want, strict=True):
    away = np.abs(np.asarray(a, np.float64) - b).max()
    assert away < 0.02 * np.abs(b).max(), name


def test_a_mapped_axis_is_one_call_after_the_other():
  each = [arguments(cases.TEST[name]) for name in ("spread", "holes")]
  both = jax.tree.map(lambda *a: jnp.stack(a), *each)
  got = jax.jit(jax.vmap(functools.partial(outcome, SMALL)))(*both)
  for i, args in enumerate(each):
    assert_close([a[i] for a in got], [*outcome(SMALL, *args)])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["skewed", "holes"])
def test_the_kernels_race_with_nothing(case, capsys):
  """In the interpreter that has a TPU's memories, NaN at first; it prints what it finds."""
  real, index, dy_ND = jax.tree.map(jnp.asarray, arguments(cases.TEST[case]._replace(D=8, F=8)))
  memories = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="uninitialized")
  with pltpu.force_tpu_interpret_mode(memories):
    got = outcome(functools.partial(tpu.swiglu, tile=tiles(8, 16, 8, 8)), real, index, dy_ND)
    jax.block_until_ready(got)
  assert "RACE" not in capsys.readouterr().out
  assert_near(got, wanted(real, index, dy_ND))


def program(platform, devices=1, dtype=jnp.float32):
  """The expert FFN and its gradients, traced for a machine that is not there."""
  real, index, _ = arguments(cases.TEST["spread"])
  real = [jnp.asarray(a, dtype) for a in real]

  def grads(*real):
    return jax.grad(lambda *real: op.swiglu(*real, *index).sum(), range(5))(*real)

  with context(platform, devices):
    return str(jax.make_jaxpr(grads)(*real))


def test_the_machine_decides_which_implementation_runs():
  text = program("tpu")
  assert all(f"expert_ffn_{part}" in text for part in tpu_tiles.PARTS)
  assert "grouped_matmul" not in text
  assert "ragged_dot" in program("tpu", devices=2)  # the compiler cannot cut a kernel
  assert "ragged_dot" in program("tpu", dtype=jnp.float16)  # refused, as are the matmuls


def test_a_name_is_final():
  real, index, dy_ND = arguments(cases.TEST["spread"])
  with pytest.raises(ValueError, match="x is float16; bfloat16 and float32 are done"):
    op.swiglu(*(a.astype(np.float16) for a in real), *index, implementation="tpu")
  with pytest.raises(ValueError, match="'cuda'; choose one of .*'composed'.*'tpu'"):
    op.swiglu(*real, *index, implementation="cuda")
  composed = functools.partial(op.swiglu, implementation="composed")
  assert_near(outcome(composed, real, index, dy_ND), wanted(real, index, dy_ND))


def changed(**by_name):
  real, index, _ = arguments(cases.TEST["spread"])
  given = dict(zip((*NAMES, "token_M", "row_NK", "size_E"), (*real, *index), strict=True))
  return {name: by_name.get(name, lambda a: a)(a) for name, a in given.items()}


@pytest.mark.parametrize(
  "given, told",
  [
    ({"x_ND": lambda a: a[:, :4]}, "rows of 4, weights"),
    ({"wo_EFD": lambda a: a.swapaxes(1, 2)}, "give \\[N, D\\], and \\[E, D, F\\] twice"),
    ({"wu_EDF": lambda a: a.astype(np.float16)}, "give all one floating dtype"),
    ({"x_ND": lambda a: a[0]}, "they need \\[2, 3, 3, 3, 1, 1, 2, 1\\]"),
    ({"size_E": lambda a: a[:2]}, "2 sizes for E=3 experts"),
    ({"size_E": lambda a: a + 1}, "61 rows in all do not fit M=58"),
    ({"gate_M": lambda a: a[1:]}, "57 gates for 29 tokens"),
    ({"row_NK": lambda a: a[1:]}, "tables of 28 tokens"),
    ({"token_M": lambda a: a * 1.0}, "give int32"),
  ],
)
def test_wrong_use_is_one_sentence(given, told):
  with pytest.raises(ValueError, match=told):
    op.swiglu(**changed(**given))
