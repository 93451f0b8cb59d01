"""The page of the conformance matrix: what is measured already, what a change touched, and text.

The page is all that is kept. Under each router stand the digests of the files with which its cells
were measured; a cell is measured again when the file of its router, of one of its edits or of its
dispatch is another one. So a run goes on where the last one stopped, and after a change of one
dispatch only its columns are made again. A change of what all share (plans, rows, kernels) is not
seen: `--again` measures everything.
"""

import collections
import functools
import hashlib
import itertools
import pathlib
import re
import sys
import time

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moejax.core import plugin
from moejax.core.plugin import Failed
from moejax.lab import matrix

HEAD = """# Conformance

Made by `python -m moejax matrix`, which measures the cells whose router, edit or dispatch has
changed since, and all of them with `--again`: {minutes} CPU minutes. A cell is one MoE layer of
{N} tokens: output and gradients of tokens, router and experts against dense dispatch in float32 on
one device (einsum where a router mixes tokens). Columns are dispatch and devices (8:
`data:2,expert:4`). 🟢 or 🔴: largest error in float32 / in bfloat16, as part of the largest entry
of its array, allowed up to {allowed}; time of forward and backward in float32, piece by piece,
compiled without optimisations: good for comparing neighbours, not for speed. Every component has
its default config. Refused: with the sentence below the table.

{total}"""
MINUTES = 15  # of a whole run, on two cores


@functools.cache
def digest(family: str, name: str) -> str:
  """Eight letters of the sum of a component's file."""
  path = plugin.load(family, name).__file__ or ""
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:8]


def digests(router: str) -> dict[str, str]:
  """ "family/name" -> digest, of a router and of all edits and dispatches."""
  others = [(family, name) for family in ("edits", "dispatch") for name in plugin.names(family)]
  return {
    f"{family}/{name}": digest(family, name) for family, name in [("routers", router), *others]
  }


def parts(at: tuple) -> list[str]:
  """The components of a cell, as digests() names them."""
  router, edits, dispatch, _ = at
  return [f"routers/{router}", *(f"edits/{name}" for name in edits), f"dispatch/{dispatch}"]


class Section:
  """One router: its cells, and the digests of the files they were measured with."""

  def __init__(self, router: str, cells=(), measured=()):
    self.router, self.cells, self.measured = router, {c.at: c for c in cells}, dict(measured)

  def stale(self, wanted) -> list[tuple]:
    """Those of the wanted cells that were never measured, or with another file."""
    now = digests(self.router)
    fresh = lambda at: all(self.measured.get(part) == now[part] for part in parts(at))
    return [at for at in wanted if at not in self.cells or not fresh(at)]

  def take(self, found, whole) -> None:
    """Adds measured cells; forgets those of components that are no more.

    A digest is today's once no cell of `whole`, the product of the router, is left behind.
    """
    found = {cell.at: cell for cell in found}
    behind = {part for at in self.stale(whole) if at not in found for part in parts(at)}
    self.cells = {at: cell for at in whole if (cell := found.get(at) or self.cells.get(at))}
    old = {part: self.measured[part] for part in behind & set(self.measured)}
    self.measured = {
      part: d for part, d in digests(self.router).items() if part not in behind
    } | old

  def tally(self) -> str:
    """How many are what, and how far from the oracle."""
    run = [cell for cell in self.cells.values() if not cell.refused]
    green = sum(cell.green for cell in run)
    worst = [max((cell.error[dtype] for cell in run), default=0) for dtype in matrix.DTYPES]
    return (
      f"{green} green, {len(run) - green} red, {len(self.cells) - len(run)} refused; worst error"
      f" {worst[0]:.0e} in float32, {worst[1]:.0e} in bfloat16."
    )

  def text(self) -> str:
    """As the page shows it."""
    cells = self.cells.values()
    notes = list(dict.fromkeys(cell.refused for cell in cells if cell.refused))
    columns = sorted({at[2:] for at in self.cells})
    lines = [
      f"## {self.router}", "", self.tally(), "",
      f"| edits | {' | '.join(f'{name}, {count}' for name, count in columns)} |",
      f"|{'---|' * (len(columns) + 1)}",
    ]  # fmt: skip
    for edits in dict.fromkeys(at[1] for at in self.cells):
      row = [self.cells.get((self.router, edits, *column)) for column in columns]
      shown = [show(cell, notes) if cell else "" for cell in row]
      lines.append(f"| {', '.join(edits) or 'none'} | {' | '.join(shown)} |")
    lines += [""] * bool(notes) + [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    measured = " ".join(f"{part}:{digest}" for part, digest in sorted(self.measured.items()))
    return "\n".join([*lines, "", f"<!-- measured with {measured} -->"])


def show(cell: matrix.Cell, notes: list[str]) -> str:
  """A cell as the page has it."""
  if cell.refused:
    return f"refused [{notes.index(cell.refused) + 1}]"
  sizes = " / ".join(f"{error:.0e}" for error in cell.error.values())
  return f"{'🟢' if cell.green else '🔴'} {sizes}, {cell.ms:.0f} ms"


def understand(text: str, at: tuple, notes: list[str]) -> matrix.Cell:
  """The inverse of show()."""
  router, edits, dispatch, devices = at
  cell = functools.partial(matrix.Cell, router, edits, dispatch, devices)
  if refused := re.fullmatch(r"refused \[(\d+)\]", text):
    return cell({}, refused=notes[int(refused[1]) - 1])
  *errors, ms = re.findall(r"nan|inf|\d[\d.e+-]*", text)
  return cell(dict(zip(matrix.DTYPES, map(float, errors), strict=True)), float(ms))


def read(text: str) -> dict[str, Section]:
  """The sections of a page by router."""
  out = {}
  for part in re.split(r"^## ", text, flags=re.M)[1:]:
    router, _, body = part.partition("\n")
    notes = re.findall(r"^\d+\. (.*)$", body, flags=re.M)
    rows = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    columns = [(name, int(count)) for name, count in (c.split(", ") for c in rows[0][1:])]
    measured = re.findall(r"(\w+/\w+):(\w+)", body)
    found = [
      understand(
        cell, (router, () if edits == "none" else tuple(edits.split(", ")), *column), notes
      )
      for edits, *row in rows[1:]
      for column, cell in zip(columns, row, strict=True)
      if cell
    ]
    out[router] = Section(router, found, measured)
  return out


def page(sections: dict[str, Section]) -> str:
  """The whole page; routers that are no more lose their section."""
  known = [sections[name] for name in plugin.names("routers") if name in sections]
  cells = [cell for one in known for cell in one.cells.values()]
  of = collections.Counter(
    "refused" if cell.refused else "green" if cell.green else "red" for cell in cells
  )
  head = HEAD.format(
    N=matrix.N, minutes=MINUTES,
    allowed=" / ".join(f"{most:.0e}" for most in matrix.DTYPES.values()),
    total=f"{len(known)} routers: {of['green']} green, {of['red']} red, {of['refused']} refused.",
  )  # fmt: skip
  return "\n\n".join([head, *(one.text() for one in known)]) + "\n"


def load(path) -> dict[str, Section]:
  """The sections of the page in a file, none where there is no such file."""
  path = pathlib.Path(path)
  return read(path.read_text(encoding="utf-8")) if path.is_file() else {}


def touched(sections: dict[str, Section]) -> list[tuple]:
  """What to look at after a change: the cells of a changed router, edit or dispatch.

  Few of them can show it: with and without slots, and one router for each K where the router is
  the old one.
  """
  config = lambda name: plugin.load("routers", name).Config()
  kind = {name: getattr(config(name), "k", name) for name in plugin.names("routers")}
  first = {k: name for name, k in reversed(kind.items())}.values()
  out = []
  for name in kind:
    section, now = sections.get(name, Section(name)), digests(name)
    changed = {part for part in now if section.measured.get(part) != now[part]}
    if name in first or f"routers/{name}" in changed:
      for at in section.stale(matrix.product([name])):
        if at[1] in ((), ("capacity",)) or changed & {f"edits/{edit}" for edit in at[1]}:
          out.append(at)
  return out


def run(out="docs/conformance.md", routers=None, dispatches=None, devices=None, again=False) -> str:
  """What `python -m moejax matrix` does: measures, writes the page, fails where a cell is red."""
  path, sections = pathlib.Path(out), load(out)
  wanted = matrix.product(routers, dispatches, devices)
  path.parent.mkdir(parents=True, exist_ok=True)
  todo = []
  for name, group in itertools.groupby(wanted, lambda at: at[0]):
    section = sections.setdefault(name, Section(name))
    cells = list(group)
    todo.append((section, cells if again else section.stale(cells)))
  lines, start = [], time.process_time()
  columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
  with Progress(*columns, console=Console(file=sys.stderr)) as bar:
    task = bar.add_task("matrix", total=sum(len(cells) for _, cells in todo))
    for section, cells in todo:
      bar.update(task, description=section.router)
      found = []
      for at in cells:
        found.append(matrix.measure(*at))
        bar.advance(task)
      section.take(found, matrix.product([section.router]))
      path.write_text(page(sections), encoding="utf-8")  # what is done is kept
      lines.append(f"{section.router}: {len(cells)} measured; {section.tally()}")
      bar.console.print(lines[-1], highlight=False, soft_wrap=True)
  minutes = (time.process_time() - start) / 60
  asked = {section.router for section, _ in todo}
  red = [c for name in sorted(asked) for c in sections[name].cells.values() if not c.green]
  if red:
    which = ", ".join(dict.fromkeys(f"{c.router} with {c.dispatch}" for c in red))
    raise Failed(f"matrix: {len(red)} cells are red ({which}); see {path}.")
  return f"written to {path} after {minutes:.1f} CPU minutes"
