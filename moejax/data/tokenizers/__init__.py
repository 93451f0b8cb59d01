"""How text becomes numbers: one file per tokenizer, named `name[:argument]` in a config.

A tokenizer file has `load(argument, training, cache) -> Tokenizer`. The ids of a text never contain
`eos`, whatever the text says; decoding leaves `eos` out.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Training:
  """The documents a tokenizer may be trained on: those of the train split."""

  fingerprint: str
  texts: Callable[[], Iterator[str]]
  count: int


class Tokenizer(Protocol):
  vocab: int  # ids are 0..vocab-1
  eos: int
  bytes_V: np.ndarray  # how many bytes of UTF-8 each id stands for
  fingerprint: str

  def encode(self, text: str) -> list[int]: ...
  def encode_batch(self, texts: list[str]) -> list[Sequence[int] | np.ndarray]: ...
  def decode(self, ids) -> str: ...
