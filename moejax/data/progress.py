"""What preparing shows: a bar on a terminal, one plain line elsewhere."""

from collections.abc import Iterable, Iterator

import rich.console
import rich.progress


def _console() -> rich.console.Console:
  return rich.console.Console(stderr=True)


def terminal() -> bool:
  """Whether somebody watches."""
  return _console().is_terminal


def tell(what: str):
  """A line, as it is."""
  _console().print(what, markup=False, highlight=False, soft_wrap=True)


def track(items: Iterable, total: int | None, what: str) -> Iterator:
  """The items, while a bar counts them."""
  if not terminal():
    tell(what if total is None else f"{what} ({total:,})")
    yield from items
    return
  columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
  with rich.progress.Progress(*columns, console=_console(), transient=True) as bar:
    yield from bar.track(items, total=total, description=what)
