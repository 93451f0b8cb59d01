"""What preparing shows: a bar on a terminal, one plain line elsewhere."""

from collections.abc import Iterable, Iterator

import rich.console
import rich.progress


def track(items: Iterable, total: int, what: str) -> Iterator:
  """The items, while a bar counts them."""
  console = rich.console.Console(stderr=True)
  if not console.is_terminal:
    console.print(f"{what} ({total:,})", markup=False, highlight=False, soft_wrap=True)
    yield from items
    return
  columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
  with rich.progress.Progress(*columns, console=console, transient=True) as bar:
    yield from bar.track(items, total=total, description=what)
