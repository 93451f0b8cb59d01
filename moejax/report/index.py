"""What there is: every component with its docstring, fields, paper, study and last verdict.

Files are parsed, not imported, so that a list takes no time and comments next to fields are seen.
"""

import ast
import importlib
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
CONFIGS = PACKAGE.parent / "configs"
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
  folders = importlib.import_module(f"moejax.{family}").__path__
  paths = (pathlib.Path(folder) / f"{name}.py" for folder in folders)
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    return Component(family, name, "", [], False)
  text = path.read_text(encoding="utf-8")
  tree = ast.parse(text)
  config = _class(tree, "Config")
  fields = _inherited(config) + _fields(config, text.splitlines()) if config else []
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
  head = ("mechanism", "family", "what it is", "paper", "study", "verdict", "date")
  out = [
    "# Mechanisms and their papers",
    "",
    "Made by `python -m moejax list --markdown > docs/papers.md` from the files themselves. A name",
    "of the family `configs` is a setting of other rows: an arm of a study, or an architecture.",
    "",
    f"| {' | '.join(head)} |",
    f"|{'---|' * len(head)}",
  ]
  for family, name, file, what, paper, study in [*_mechanisms(), *_arms(), *_architectures()]:
    link = r"[arXiv:\1](https://arxiv.org/abs/\1)"
    paper = re.sub(r"arXiv:(\d+\.\d+)", link, paper)
    result = _result(study)
    verdict = result.get("verdict", "none") if result else "not run yet" if study else ""
    row = (f"[{name}](../{file})", family, what, paper, study, verdict, result.get("date", ""))
    out.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
  return "\n".join(out)


def _mechanisms():
  """(family, name, file, what it is, paper, study) of every component with a paper."""
  for family in families():
    for c in components(family):
      if c.says("Paper"):
        file, study = f"moejax/{family.replace('.', '/')}/{c.name}.py", c.says("Study")
        yield family, c.name, file, c.summary, c.says("Paper"), pathlib.PurePath(study).stem


def _arms():
  """The same of published names that are settings: PAPERS of a study, arm -> (what, paper)."""
  for path in sorted((CONFIGS / "studies").glob("[a-z]*.py")):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
      if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAPERS":
        for arm, (what, paper) in ast.literal_eval(node.value).items():
          yield "configs", arm, f"configs/studies/{path.name}", what, paper, path.stem


def _architectures():
  """The same of published architectures."""
  for path in sorted((CONFIGS / "models").glob("[a-z]*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    c = Component("configs", path.stem, doc, [], False)
    yield "configs", c.name, f"configs/models/{path.name}", c.summary, c.says("Paper"), ""


def last_verdict(study: str) -> str:
  """The verdict in docs/results/<study>.json with its date, "" where there is none."""
  result = _result(study)
  dated = f" ({result['date']})" if result.get("date") else ""
  return f"{result.get('verdict', 'none')}{dated}" if result else ""


def _result(study: str) -> dict:
  """What the last run of a study wrote, {} where there was none."""
  path = RESULTS / f"{pathlib.PurePath(study).stem}.json"
  return json.loads(path.read_text(encoding="utf-8")) if study and path.is_file() else {}


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


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
  return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)


def _inherited(config: ast.ClassDef) -> list[Field]:
  """The fields of a class of moejax/core that a Config starts from, as `controllers.Aim`."""
  out = []
  for base in config.bases:
    module, _, name = ast.unparse(base).rpartition(".")
    text = PACKAGE.joinpath("core", f"{module}.py").read_text(encoding="utf-8")
    found = _class(ast.parse(text), name)
    out += _fields(found, text.splitlines()) if found else []
  return out


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
