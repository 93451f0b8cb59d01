"""What preparing shows: a bar on a terminal, one plain line elsewhere."""

import contextlib
from collections.abc import Iterable, Iterator

import rich.console
import rich.progress


def _console() -> rich.console.Console:
  return rich.console.Console(stderr=True)


def terminal() -> bool:
  """Whether somebody watches."""
  return _console().is_terminal


@contextlib.contextmanager
def say(what: str):
  """A line that something takes time, with a spinner while it does."""
  console = _console()
  if console.is_terminal:
    with console.status(what):
      yield
  else:
    console.print(what, markup=False, highlight=False, soft_wrap=True)
    yield


def track(items: Iterable, total: int | None, what: str) -> Iterator:
  """The items, while a bar counts them."""
  console = _console()
  if not console.is_terminal:
    with say(what if total is None else f"{what} ({total:,})"):
      yield from items
    return
  columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
  with rich.progress.Progress(*columns, console=console, transient=True) as bar:
    yield from bar.track(items, total=total, description=what)


def tell(what: str):
  """A line for whoever reads."""
  _console().print(what, markup=False, highlight=False, soft_wrap=True)
