"""Where documents come from: one file per kind of source, named `name[:argument]` in a config.

A source has `open(argument, cfg, cache) -> Documents`. It reads what is there or refuses with one
sentence; text is never made up. `cfg` is the section `data`, `cache` a folder to keep things in.
"""

import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Documents:
  """Texts, each with the name of its domain, in an order that never changes."""

  fingerprint: str  # of the content: what is derived from equal documents is cached once
  read: Callable[[], Iterator[tuple[str, str]]]  # (text, label), from the first one at every call
