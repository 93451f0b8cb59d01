"""What there is to tune of routing, and what it is compared with (see ../tune.py).

The yardstick is the library: softmax or sigmoid, `lax.top_k`, `argsort`, `bincount`.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import tune
from pallas_kernels.routing import cases, library, ref, rule, triton
from pallas_kernels.routing.rule import Rule
from pallas_kernels.tune import Job, Work, Yardstick

OP = "routing"
PARTS = ("top_k", "sort", "route")
SOME = 16  # tokens whose choices are looked at one by one


class Case(typing.NamedTuple):
  """N tokens whose experts are chosen by a rule."""

  N: int
  case: cases.Case


BENCH = {
  f"N{N}_E{E}_K{K}": Case(N, cases.Case(E, Rule(K)))
  for N, E, K in ((4096, 8, 2), (4096, 64, 8), (4096, 128, 8), (4096, 512, 10))
}


def named(tokens: int) -> dict:
  """name -> (case, loads): small ones, and the routers of models."""
  small = {name: (case, ("even",)) for name, case in BENCH.items()}
  models = {name: Case(tokens, case) for name, case in cases.MODELS.items()}
  return small | {name: (case, ("zipf",)) for name, case in models.items()}


def parts(every: bool) -> tuple[str, ...]:
  """The choice, the sort, and all from logits to places."""
  return PARTS


def job(case: Case, part: str, loads, dtype, every: bool) -> Job:
  """A part at a case; scores are float32 whatever the layer is in."""
  N, (E, choice, _) = case
  K, M = choice.k, N * choice.k
  shape = {"M": M, "E": E} if part == "sort" else {"N": N, "E": E, "K": K}
  bound = {"top_k": K, "sort": E, "route": choice}[part]
  arguments = {}
  for load in loads:
    logit_NE, bias_E, valid_N = map(jnp.asarray, cases.arguments(case.case, load, N))
    expert_M = lambda: jax.lax.top_k(logit_NE, K)[1].ravel()  # noqa: B023  called at once
    route = (logit_NE, bias_E, valid_N)
    arguments[load] = route if part == "route" else (expert_M(),) if part == "sort" else route[:1]
  width = pl.next_power_of_2(E // choice.groups) * pl.next_power_of_2(choice.groups)
  tried = lambda name: triton.candidates(width) if name == "triton" else [None]
  bind = lambda function: lambda *args: function(*args, bound)
  return Job(
    OP,
    part,
    shape,
    "int32" if part == "sort" else "float32",
    arguments,
    tune.ways(OP, part, shape, "float32", tried if every else None, bind=bind),
    {"library": Yardstick(bind(getattr(library, part, plain)))},
    functools.partial(checked, part, bound),
    dict.fromkeys(loads, work(part, case)),
  )


def work(part: str, case: Case) -> Work:
  """Scores and ids once: each is four bytes."""
  scores, rows, E = case.N * case.case.E, case.N * case.case.rule.k, case.case.E
  return Work(0.0, 4.0 * {"top_k": scores + rows, "sort": 3 * rows + E,
                          "route": scores + 3 * rows + E}[part])  # fmt: skip


def plain(logit_NE, bias_E, valid_N, choice: Rule):
  """A route as anyone would write it, without limits to groups and tokens that do not count."""
  score_NE = rule.scores(logit_NE, choice.score)
  expert_NK = jax.lax.top_k(score_NE + bias_E[None], choice.k)[1]
  gate_NK = jnp.take_along_axis(score_NE, expert_NK, axis=1)
  if choice.renormalise:
    gate_NK = gate_NK / gate_NK.sum(1, keepdims=True)
  order_M = jnp.argsort(expert_NK.ravel(), stable=True)
  place_M = jnp.zeros_like(order_M).at[order_M].set(jnp.arange(len(order_M), dtype=order_M.dtype))
  size_E = jnp.bincount(expert_NK.ravel(), length=logit_NE.shape[1])
  return expert_NK, choice.scale * gate_NK, place_M.reshape(expert_NK.shape), size_E


def checked(part: str, bound, *args):
  """function(result) -> what is wrong with it: choices of some tokens, and all of the sort."""
  if part == "sort":
    expert_M = np.asarray(args[0])
    order_M = np.argsort(expert_M, kind="stable")
    place_M, size_E = np.argsort(order_M), np.bincount(expert_M, minlength=bound)
    every = [(i, slice(None), want) for i, want in enumerate((order_M, place_M, size_E))]
    return functools.partial(tune.wrong, expected=every)
  some = np.unique(np.linspace(0, len(args[0]) - 1, SOME).astype(int))
  if part == "top_k":
    best_SK = np.argsort(-np.asarray(args[0][some]), axis=1, kind="stable")[:, :bound]
    return functools.partial(tune.wrong, expected=[(0, some, best_SK)])
  logit_NE, bias_E, valid_N = (np.asarray(a, np.float64) for a in args)
  expert_SK, gate_SK, *_ = ref.route(logit_NE[some], bias_E, valid_N[some], bound)

  def wrong(got):
    """Places and counts by the choices of the result: near ties may go either way."""
    expert_M = np.asarray(got[0]).ravel()
    place_NK = np.argsort(np.argsort(expert_M, kind="stable")).reshape(got[0].shape)
    size_E = np.bincount(expert_M, minlength=logit_NE.shape[1])
    own = [(2, slice(None), place_NK), (3, slice(None), size_E)]
    return tune.wrong(got, [(0, some, expert_SK), (1, some, gate_SK), *own])

  return wrong
