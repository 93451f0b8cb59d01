"""The verbs of `python -m moejax`: words to a function call, its text to the terminal.

What a verb does is a plain function elsewhere, imported when it is called, so that `list` and
`--help` do not wait for jax.
"""

import argparse
import os
import sys

from moejax.core import plugin
from moejax.core.plugin import Failed, Wrong


def _list(args) -> str:
  """every component: name, what it is, paper, study"""
  from moejax.report import index

  return index.markdown() if args.markdown else index.listing(args.family)


def _show(args) -> str:
  """one component: its docstring and its config fields"""
  from moejax.report import index

  return index.page(args.family, args.name)


def _report(args) -> str:
  """report.html and plots of a run, at any time; of several runs, a comparison"""
  from moejax.report import compare, page

  several = len(args.dirs) > 1
  return str(compare.write(args.dirs, args.out) if several else page.write(args.dirs[0]))


def _generate(args) -> str:
  """text from a trained run"""
  from moejax.train import sample

  return sample.from_run(args.dir, args.prompt, args.tokens, args.temperature, args.seed)


def _audit(args) -> str:
  """what is promised, tried out: a mesh against one device (parallel), or causality"""
  if args.what == "causality":
    from moejax.lab import causality

    return causality.report(args.routers)
  from moejax.lab import audit_report

  return audit_report.run(args.config, args.out, args.json, args.only)


def _lab(args) -> str:
  """balance controllers on recorded router logits, without training"""
  from moejax.lab import balance

  names = lambda text: text.split(",") if text else None
  return balance.run(
    args.source, args.out, args.router, names(args.rules), balance.grid(args.speeds), args.steps,
    args.bound, args.layer, args.batches,
  )  # fmt: skip


def _trace(args) -> str:
  """who chose what: record RUN, show FILE, replay FILE RUN, diff FILE FILE"""
  from moejax.lab import traces

  words = {"record": "RUN", "show": "FILE", "replay": "FILE RUN", "diff": "FILE FILE"}[args.what]
  if len(args.paths) != len(words.split()):
    raise Wrong(f"trace {args.what} needs {words}, and {len(args.paths)} were given.")
  if args.what == "record":
    how = {name: getattr(args, name) for name in ("out", "batches", "split", "gates", "step")}
    return str(traces.record_run(args.paths[0], **how))
  if args.what == "replay":
    path, run = args.paths
    return traces.replay_run(path, run, args.compute, args.forced_gates, args.step)
  return {"show": traces.show, "diff": traces.diff_files}[args.what](*args.paths)


def _counterfactual(args) -> str:
  """regret of a router's choices and value of its experts, by forcing other choices"""
  from moejax.lab import counterfactual

  layers = args.layer.split(",") if args.layer else ()
  how = (args.tokens, args.gates, args.seed, args.step)
  return counterfactual.from_run(args.dir, layers, *how)


def _room(args) -> str:
  """room for the buffers of expert parallelism, from a trace: enough but for one time in so many"""
  from moejax.lab import room

  asked = (args.eps, args.rungs, args.groups, args.experts, args.inner)
  return room.report(args.file, args.mesh, *asked)


def _matrix(args) -> str:
  """the conformance matrix of routers, edits, dispatches, dtypes and devices"""
  # compiling takes most of the time; XLA reads this when it starts
  cheap = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  cheap += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  os.environ.setdefault("XLA_FLAGS", cheap)
  import jax

  from moejax.lab import matrix_page

  names = lambda text: text.split(",") if text else None
  devices = [int(n) for n in names(args.devices) or ()] or None
  if not args.devices or "8" in args.devices:
    jax.config.update("jax_num_cpu_devices", 8)
  which = (names(args.routers), names(args.dispatches), devices)
  return matrix_page.run(args.out, *which, args.again)


def _plan(args) -> str:
  """what a training step needs on a machine that is not there: memory, FLOPs, bytes moved"""
  from moejax.lab import plan, plan_page, plan_search

  if args.page:
    return plan_page.markdown(args.page)
  if args.check or args.remake:
    return plan_page.check(args.check or args.remake, remake=not args.check)
  if not args.topology:
    raise Wrong("plan: --topology is missing; give one, such as v5p:8x8x4 or h200:4x8.")
  if args.search:
    return plan_search.run(args.config, args.topology, args.out)
  return plan.run(args.config, args.topology, args.mesh, args.out)


VERBS = {
  "list": _list, "show": _show, "report": _report, "generate": _generate, "audit": _audit,
  "lab": _lab, "matrix": _matrix, "trace": _trace, "counterfactual": _counterfactual,
  "room": _room, "plan": _plan,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
  """The words that each verb takes."""
  top = argparse.ArgumentParser("python -m moejax", description="Looks at components and runs.")
  top.add_argument("--debug", action="store_true", help="show the traceback of an error")
  verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
  of = {name: verbs.add_parser(name, help=f.__doc__, description=f.__doc__)
        for name, f in VERBS.items()}  # fmt: skip
  of["list"].add_argument("family", nargs="?", help="a folder, as routers; all without it")
  of["list"].add_argument("--markdown", action="store_true", help="the table of docs/papers.md")
  of["show"].add_argument("family", help="a folder, as routers")
  of["show"].add_argument("name", help="a file in it, as topk")
  of["report"].add_argument("dirs", nargs="+", metavar="DIR", help="the --workdir of a run")
  of["report"].add_argument("--out", default="comparison.html", help="where a comparison goes")
  of["generate"].add_argument("dir", metavar="DIR", help="the --workdir of a run")
  of["generate"].add_argument("--prompt", default="", help="how the text starts")
  of["generate"].add_argument("--tokens", type=int, default=200, help="how many are added (200)")
  of["generate"].add_argument("--temperature", type=float, default=0.8, help="0: the best (0.8)")
  of["generate"].add_argument("--seed", type=int, default=0, help="of the draws (0)")
  _words_of_audit(of["audit"])
  of["matrix"].add_argument("--out", default="docs/conformance.md", help="the page")
  of["matrix"].add_argument("--routers", help="only these, as topk,hash; all without it")
  of["matrix"].add_argument("--dispatches", help="only these, as sort,gather; all without it")
  of["matrix"].add_argument("--devices", help="1, 8, or 1,8 (which is the default)")
  of["matrix"].add_argument("--again", action="store_true", help="those that did not change, too")
  of["lab"].add_argument("source", help="the --workdir of a run, an .npz, or drift: drawn logits")
  of["lab"].add_argument("--out", default="runs/lab", help="a folder (runs/lab)")
  of["lab"].add_argument("--router", default="sigmoid_topk", help="it chooses with a bias")
  of["lab"].add_argument("--rules", help="controllers, as sign,quantile; all without it")
  of["lab"].add_argument("--speeds", default="1e-4:1:13", help="first:last:how many (1e-4:1:13)")
  of["lab"].add_argument("--steps", type=int, default=400, help="control steps (400)")
  of["lab"].add_argument("--bound", type=float, default=0.5, help="on MaxVio, to settle (0.5)")
  of["lab"].add_argument("--layer", help="of a run, as layer_002; its first MoE layer without it")
  of["lab"].add_argument("--batches", type=int, default=32, help="recorded of a run (32)")
  of["room"].add_argument("file", metavar="FILE", help="of `trace record`, or of a traced run")
  of["room"].add_argument("--mesh", required=True, help="as data:2,expert:4")
  of["room"].add_argument("--eps", type=float, default=0.01, help="how often not enough (0.01)")
  of["room"].add_argument("--rungs", type=int, default=2, help="compiled sizes (2)")
  of["room"].add_argument("--groups", type=int, default=0, help="also of capacity, in so many")
  of["room"].add_argument("--inner", type=int, default=0, help="also of dedup, owners in a node")
  of["room"].add_argument("--experts", type=int, default=0, help="that are not virtual; all ids")
  _words_of_choices(of["trace"], of["counterfactual"])
  _words_of_plans(of["plan"])
  return top


def _words_of_audit(audit) -> None:
  """Those of the audit, of meshes and of causality."""
  what = {"nargs": "?", "default": "parallel", "choices": ["parallel", "causality"]}
  audit.add_argument("what", **what, help="a mesh, or whether a later token leaks backwards")
  audit.add_argument("--routers", help="causality: only these, as topk,hash; all without it")
  words = {"action": "append", "default": [], "metavar": "FILE[:ARM]"}
  audit.add_argument("--config", **words, help="a run, and --config.a.b=value; a grid without it")
  audit.add_argument("--only", default="", help="cells with this in their title; all without it")
  audit.add_argument("--out", help="a page, as docs/audit.md")
  audit.add_argument("--json", help="a file of all numbers")


def _words_of_plans(plan) -> None:
  """Besides --config=FILE and its overrides, which are those of experiments.run."""
  words = {"action": "append", "default": [], "metavar": "FILE[:ARM]"}
  plan.add_argument("--config", **words, help="a run, and --config.a.b=value")
  plan.add_argument("--topology", help="v5p:8x8x4 (v4, v5e, v5p, v6e, tpu7x), or h200:HOSTSxGPUS")
  plan.add_argument("--mesh", default="", help="as expert:32,fsdp:8; that of the config without it")
  plan.add_argument("--out", help="a JSON file; of a search, the file that it resumes")
  plan.add_argument(
    "--search", action="store_true", help="try meshes and remat policies, rank them"
  )
  plan.add_argument("--check", nargs="+", metavar="FILE", help="compile JSON plans again, compare")
  plan.add_argument("--remake", nargs="+", metavar="FILE", help="compile JSON plans again, replace")
  plan.add_argument("--page", nargs="+", metavar="FILE", help="docs/plans.md, from JSON plans")


def _words_of_choices(trace, counterfactual) -> None:
  """Those of the verbs that look at single choices."""
  trace.add_argument("what", choices=["record", "show", "replay", "diff"])
  trace.add_argument("paths", nargs="*", metavar="PATH", help="the files and runs it needs")
  trace.add_argument("--out", help="record: the file (RUN/traces/SPLIT_STEP.trace)")
  trace.add_argument("--batches", type=int, default=8, help="record: how many (8)")
  trace.add_argument("--split", default="validation", help="record: of the text (validation)")
  trace.add_argument("--gates", default="float16", help="record: float32, none (float16)")
  trace.add_argument("--forced-gates", action="store_true", help="replay: the file's gates, too")
  trace.add_argument("--compute", help="replay: another dtype than the run's, as bfloat16")
  counterfactual.add_argument("dir", metavar="DIR", help="the --workdir of a run")
  counterfactual.add_argument("--layer", help="as layer_002,layer_003; all without it")
  counterfactual.add_argument("--tokens", type=int, default=64, help="drawn for each layer (64)")
  counterfactual.add_argument("--gates", default="router", help="router, or kept: the old gate")
  counterfactual.add_argument("--seed", type=int, default=0, help="of the draw (0)")
  for verb in (trace, counterfactual):
    verb.add_argument("--step", type=int, help="of the checkpoint; the newest without it")


def _overrides(args, fields: list[str]) -> list[str]:
  """The words of --config, as core/flags.py reads them."""
  if not hasattr(args, "config"):
    raise Wrong(f"{args.verb} reads no config, and {fields[0]!r} was given; leave it out.")
  return [*(f"--config={file}" for file in args.config), *fields]


def main(argv: list[str]) -> int:
  """Runs one verb; a user's mistake is one sentence and exit code 2, a failure 1."""
  words = [word for word in argv if word != "--debug"]
  try:
    if words and not words[0].startswith("-") and words[0] not in VERBS:
      raise Wrong(f"there is no verb {words[0]!r}. {plugin.hint(words[0], VERBS)}")
    fields = [word for word in words if word.startswith("--config.")]  # judged by core/flags.py
    args = parser().parse_args([word for word in words if word not in fields])
    if fields or getattr(args, "config", None):
      args.config = _overrides(args, fields)
    print(VERBS[args.verb](args), flush=True)
  except (Wrong, Failed) as problem:
    if "--debug" in argv:
      raise
    print(f"error: {problem}", file=sys.stderr)
    return 2 if isinstance(problem, Wrong) else 1
  except BrokenPipeError:  # the reader, as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0
