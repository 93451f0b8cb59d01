"""What there is: every component with its docstring, fields, paper, study and last verdict.

Files are parsed, not imported, so that a list takes no time and comments next to fields are seen.
"""

import ast
import json
import pathlib
import pkgutil
import re
import typing

import moejax
from moejax.core import plugin
from moejax.core.plugin import Wrong

PACKAGE = pathlib.Path(moejax.__file__).parent
RESULTS = PACKAGE.parent / "docs" / "results"
MACHINERY = ("core", "report", "train", "perf", "lab")  # folders in which a file is no choice


class Field(typing.NamedTuple):
  name: str
  type: str
  default: str | None  # as written; None: the field must be given
  comment: str


class Component(typing.NamedTuple):
  family: str
  name: str
  doc: str
  fields: list[Field]
  has_config: bool

  @property
  def summary(self) -> str:
    """The docstring's first line."""
    return self.doc.partition("\n")[0]

  def says(self, word: str) -> str:
    """What follows a word such as `Paper:` in the docstring, "" without it."""
    found = re.search(rf"^{word}:\s+(.*(?:\n[ ]{{2,}}\S.*)*)", self.doc, re.M)
    text = re.sub(r"\n\s+", " ", found.group(1)) if found else ""
    return re.split(r"\s{3,}", text)[0].rstrip(".")  # the next word may be on the same line


def families() -> list[str]:
  """The folders whose files a config can name.

  >>> [f for f in families() if f in ("routers", "data.sources", "core")]
  ['data.sources', 'routers']
  """
  walk = pkgutil.walk_packages(moejax.__path__, "moejax.")
  found = sorted(m.name.removeprefix("moejax.") for m in walk if m.ispkg)
  return [f for f in found if f.partition(".")[0] not in MACHINERY and components(f)]


def components(family: str) -> list[Component]:
  """The components of a family; where some have a Config, files without one are helpers."""
  found = [component(family, name) for name in plugin.names(family)]
  configured = [c for c in found if c.has_config]
  return configured or found


def component(family: str, name: str) -> Component:
  """One component, from its file."""
  if name not in plugin.names(family):
    raise Wrong(f"{family} has no {name!r}. {plugin.hint(name, plugin.names(family))}")
  path = PACKAGE.joinpath(*family.split("."), f"{name}.py")
  if not path.is_file():
    return Component(family, name, "", [], False)
  text = path.read_text(encoding="utf-8")
  tree = ast.parse(text)
  config = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config"), None)
  fields = _fields(config, text.splitlines()) if config else []
  return Component(family, name, ast.get_docstring(tree) or "", fields, config is not None)


def listing(family: str | None = None) -> str:
  """The text of `python -m moejax list`."""
  out = []
  for f in [_known(family)] if family else families():
    found = components(f)
    width = max(len(c.name) for c in found)
    out.append(f)
    for c in found:
      out.append(f"  {c.name:{width}}  {c.summary}")
      more = "; ".join(filter(None, (c.says("Paper"), c.says("Study"))))
      out += [f"  {'':{width}}  {more}"] if more else []
    out.append("")
  return "\n".join(out).rstrip()


def page(family: str, name: str) -> str:
  """The text of `python -m moejax show`."""
  c = component(_known(family), name)
  out = [f"{c.family}/{c.name}", "", c.doc, ""]
  lines = [f"{f.name}: {f.type}" + (f" = {f.default}" if f.default else "") for f in c.fields]
  width = max(map(len, lines), default=0)
  for line, f in zip(lines, c.fields, strict=True):
    note = f.comment or ("" if f.default else "must be given")
    out.append(f"  {line:{width}}  {note}".rstrip())
  out += [] if c.fields else ["  (no fields)"]
  verdict = last_verdict(c.says("Study"))
  return "\n".join(out + (["", f"Last verdict: {verdict}"] if verdict else []))


def markdown() -> str:
  """docs/papers.md: every mechanism with a paper."""
  head = ("mechanism", "family", "what it is", "paper", "study", "last verdict")
  out = [
    "# Mechanisms and their papers",
    "",
    "Made by `python -m moejax list --markdown > docs/papers.md` from the files themselves.",
    "",
    f"| {' | '.join(head)} |",
    f"|{'---|' * len(head)}",
  ]
  for family in families():
    for c in components(family):
      if c.says("Paper"):
        file = f"[{c.name}](../moejax/{family.replace('.', '/')}/{c.name}.py)"
        link = r"[arXiv:\1](https://arxiv.org/abs/\1)"
        paper = re.sub(r"arXiv:(\d+\.\d+)", link, c.says("Paper"))
        study = pathlib.PurePath(c.says("Study")).stem
        verdict = last_verdict(study) or ("not run yet" if study else "")
        row = (file, family, c.summary, paper, study, verdict)
        out.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
  return "\n".join(out)


def last_verdict(study: str) -> str:
  """The verdict in docs/results/<study>.json with its date, "" where there is none."""
  path = RESULTS / f"{pathlib.PurePath(study).stem}.json"
  if not study or not path.is_file():
    return ""
  result = json.loads(path.read_text(encoding="utf-8"))
  dated = f" ({result['date']})" if result.get("date") else ""
  return f"{result.get('verdict', 'none')}{dated}"


def defaults(family: str, name: str) -> dict:
  """The defaults of a component that are plain values: {} for what is not known."""
  out = {}
  try:
    fields = component(family, name).fields
  except (Wrong, ImportError):  # a config of another version
    return {}
  for field in fields:
    try:
      out[field.name] = ast.literal_eval(field.default or "")
    except (ValueError, SyntaxError):
      continue
  return out


def _known(family: str) -> str:
  """The full name of a family; the last word of a dotted one is enough."""
  known = families()
  match = [f for f in known if family in (f, f.rpartition(".")[2])]
  if not match:
    raise Wrong(f"there is no family {family!r}. {plugin.hint(family, known)}")
  return match[0]


def _fields(config: ast.ClassDef, lines: list[str]) -> list[Field]:
  """The annotated names of a dataclass, each with the comment that ends its line."""
  out = []
  for node in config.body:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      tail = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :]
      default = ast.unparse(node.value) if node.value else None
      comment = tail.partition("#")[2].strip()
      out.append(Field(node.target.id, ast.unparse(node.annotation), default, comment))
  return out
