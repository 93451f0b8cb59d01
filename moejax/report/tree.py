"""A config as a tree that folds, where what is not a component's default stands out."""

import json

from moejax.core import config
from moejax.report import index
from moejax.report.html import Raw, escape


def render(value: dict, family: str | None = None) -> Raw:
  """A nested dict; `family` is the key of its section (core/config.py), None marks nothing."""
  return Raw(f'<div class="tree">{_inside(value, family, True)}</div>') if value else Raw("")


def _inside(section, family, shown=False) -> str:
  known = {**section, **_defaults(section, family)}
  word = lambda key: family and (family if family in config.NAMED else key)
  items = [(k, v) for k, v in section.items() if k != "name"]  # that stands in the heading
  return "".join(_entry(k, v, known[k], word(k), shown) for k, v in items)


def _entry(key, value, default, family, shown=False) -> str:
  if isinstance(value, dict) and value:
    return _fold(key, value.get("name", ""), _inside(value, family), shown)
  if isinstance(value, list) and any(isinstance(item, dict) for item in value):
    items = "".join(_entry(name, item, item, family) for name, item in _same(key, value))
    return _fold(key, f"{len(value)} items", items, False)
  mark = ' class="set"' if _plain(value) != _plain(default) else ""
  return f"<div{mark}>{escape(key)}: {escape(json.dumps(value))}</div>"


def _fold(key, remark, inside, shown) -> str:
  remark = f' <span class="quiet">{escape(remark)}</span>' if remark else ""
  start = "<details open>" if shown else "<details>"
  return f"{start}<summary>{escape(key)}{remark}</summary>{inside}</details>"


def _same(key, items):
  """Neighbours that are equal, as one entry.

  >>> list(_same("layers", [{"a": 1}, {"a": 2}, {"a": 2}]))
  [('layers[0]', {'a': 1}), ('layers[1..2]', {'a': 2})]
  """
  first = 0
  for i in range(1, len(items) + 1):
    if i == len(items) or items[i] != items[first]:
      span = f"{first}..{i - 1}" if i - 1 > first else str(first)
      yield f"{key}[{span}]", items[first]
      first = i


def _defaults(section, family) -> dict:
  """Defaults of the component that a section configures, of its fields that are there."""
  folder, name = config.FAMILY.get(family, (None, None))
  name = section.get("name") or name
  known = index.defaults(folder, name) if folder and name else {}
  return {key: value for key, value in known.items() if key in section}


def _plain(value):
  """As JSON reads it back: tuples are lists, and so is an empty dict."""
  return [] if value == {} else json.loads(json.dumps(value))
