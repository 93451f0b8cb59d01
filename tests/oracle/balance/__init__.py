"""Loops for balance rules, a file each, over tokens that know their place."""

import dataclasses
import typing

import numpy as np


class Token(typing.NamedTuple):
  logits: np.ndarray
  ids: list  # its choices, without unused ones
  sequence: int
  group: int


@dataclasses.dataclass
class Seen:
  """What one layer saw of one micro-batch."""

  logit_NU: np.ndarray
  expert_NK: np.ndarray
  valid_N: np.ndarray
  seq_len: int = 1
  groups: int = 1

  @property
  def ids(self) -> int:
    """U."""
    return self.logit_NU.shape[1]

  def tokens(self):
    """Those that are not padding."""
    size = len(self.valid_N) // self.groups
    for n in np.flatnonzero(self.valid_N):
      ids = [int(e) for e in self.expert_NK[n] if e >= 0]
      yield Token(self.logit_NU[n], ids, n // self.seq_len, n // size)
