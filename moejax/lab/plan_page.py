"""Committed plans: compiled again and compared, and the page that shows them.

A plan is a JSON file with the words of its command in it (lab/plan.py), so that the file alone says
how it is made again. What may move a little with a compiler (temporaries) may move by a fiftieth;
what follows from the layout (collectives, parameters) may not move at all.
"""

import json
import pathlib

from moejax.core.plugin import Failed, Wrong
from moejax.lab import plan as plans

SLACK = {"temporary": 0.02, "kept": 0.02, "peak": 0.02}
SAME = 2**20  # bytes by which the sum of a collective kind may differ
GiB = 2**30


def read(path) -> dict:
  """A plan that was written."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise Wrong(f"plan: there is no file {str(path)!r}; name a JSON file that --out wrote.")
  return json.loads(path.read_text())


def command(plan: dict) -> str:
  """The words that make it."""
  quoted = [f"'{word}'" if "'" not in word and "{" in word else word for word in plan["words"]]
  quoted = [f'"{word}"' if "'" in word else word for word in quoted]
  words = " ".join(quoted)
  return f"python -m moejax plan {words} --topology={plan['topology']} --mesh={plan['mesh']}"


def differences(old: dict, new: dict) -> list[str]:
  """A line for each figure of a plan that is another one now."""
  lines = []
  for name, was in old["bytes"].items():
    now, slack = new["bytes"][name], SLACK.get(name, 0)
    if abs(now - was) > slack * was:
      lines.append(f"{name}: {was / GiB:.3f} GiB -> {now / GiB:.3f} GiB of a device")
  for word in ("devices", "tokens", "flops"):
    if old[word] != new[word]:
      lines.append(f"{word}: {old[word]:,} -> {new[word]:,}")
  rows = lambda plan: {(r["kind"], r["axes"], r["dtype"]): r["bytes"] for r in plan["collectives"]}
  before, after = rows(old), rows(new)
  for key in {**before, **after}:
    was, now = before.get(key, 0), after.get(key, 0)
    if abs(now - was) > SAME:
      what = "new" if not was else "gone" if not now else f"{was / GiB:.3f} GiB ->"
      lines.append(f"{' over '.join(key[:2])} of {key[2]}: {what} {now / GiB:.3f} GiB")
  known = {shape for _, shape in old["largest"]}
  lines += [
    f"a value {shape} of {size / GiB:.2f} GiB is new among the largest"
    for size, shape in new["largest"]
    if shape not in known and shape.startswith("f32") and size > old["largest"][-1][0]
  ]
  return lines


def check(paths: list[str], remake: bool = False) -> str:
  """Compiles every plan again and says what differs: Failed, or with `remake` the new files."""
  said, wrong = [], 0
  for path in paths:
    old = read(path)
    new = plans.make(old["words"], old["topology"], old["mesh"])
    found = differences(old, new)
    wrong += bool(found)
    said.append(f"{path}: " + ("; ".join(found) if found else "the same"))
    if remake:
      plans.write(new, path)
  if wrong and not remake:
    head = f"plan: {wrong} of {len(paths)} plans differ from what is committed; see --remake."
    raise Failed("\n".join([head, *said]))
  return "\n".join(said)


INTRO = """# Plans

What one training step of a published architecture needs on a machine that was not there: each was
compiled whole (forward, backward, AdamW) by the machine's own compiler, on a CPU. Bytes are those
of one device. Memory and collectives are what the compiled program says; `compute` and `links` are
the FLOPs and bytes at the rates of the data sheet, one after the other, and no measurement.

{notes}

| model | machine | mesh | parameters + optimiser | peak | of | compute | links |
|---|---|---|---:|---:|---:|---:|---:|"""

NOTES = """\
* Parameters are bfloat16, moments and routers float32; layers are computed again backward.
* Experts are owned (`all_to_all`, slots for 1.25 times the even load), all else is cut by `fsdp`.
* DeepSeek-V3 and Kimi K2 have grouped-query attention here, of 128 and 64 query heads and 8 key
  heads of 128, in place of multi-head latent attention, and no multi-token prediction.
* Gradients of what `fsdp` cuts are scattered. Where a TPU's compiler sums some of them whole on
  every device, and cuts them then, the table has an all-reduce over `fsdp`.
* On an H200 attention is what XLA makes of it: cuDNN's cannot be compiled where there is no cuDNN.
* `python -m moejax plan --check docs/plans/*.json` compiles them again and says what differs;
  `--remake docs/plans/*.json` replaces them; `--page docs/plans/*.json > docs/plans.md` makes this
  page."""


def markdown(paths: list[str]) -> str:
  """The page of some plans."""
  found = {pathlib.Path(path).stem: read(path) for path in sorted(paths)}
  lines = [INTRO.format(notes=NOTES)]
  for stem, plan in found.items():
    size, seconds = plan["bytes"], plan["seconds"]
    gib = lambda n: f"{n / GiB:.1f} GiB"
    state = size["params"] + size["optim"] + size["rest"]
    lines.append(
      f"| [{stem.partition('.')[0]}](#{stem.replace('.', '')}) | {plan['topology']} |"
      f" {plan['mesh'].replace(',', ', ')} | {gib(state)} | {gib(size['peak'])} |"
      f" {size['peak'] / size['room']:.0%} | {seconds['compute']:.2f} s |"
      f" {seconds['links']:.2f} s |"
    )
  for stem, plan in found.items():
    lines += ["", f"## {stem}", "", f"    {command(plan)}", "", "```", plans.table(plan), "```"]
  return "\n".join(lines)
