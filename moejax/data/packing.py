"""Packing: documents of any length become windows of T+1 tokens, by plain index arithmetic.

The documents of a split, in one shuffled order, form one long stream. Window w covers the places
w*T .. w*T+T of it: neighbours share one token, so each place but the first is a target once. The
end of the stream, shorter than a window, is padded.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

KEYS = ("token", "segment", "label")
EMPTY = b"\0\0\0\0"  # the record of a window without documents


@dataclasses.dataclass(frozen=True)
class Stream:
  """Token ids of all documents one after another, and which of them to read in which order."""

  token: np.ndarray  # [all tokens], usually a memory map
  start_D: np.ndarray  # D documents in reading order: where each begins,
  length_D: np.ndarray  # how long it is, its end token included,
  label_D: np.ndarray  # and its domain

  @property
  def tokens(self) -> int:
    """The length of the stream."""
    return int(self.length_D.sum())

  def windows(self, T: int) -> int:
    """How many windows hold at least one target.

    >>> [Stream(None, None, np.array([n]), None).windows(4) for n in (1, 2, 5, 6)]
    [0, 1, 1, 2]
    """
    return max(0, -(-(self.tokens - 1) // T))


def records(stream: Stream, T: int):
  """Every window as bytes."""
  end_D = np.cumsum(stream.length_D)
  for w in range(stream.windows(T)):
    place, last = w * T, min(w * T + T + 1, stream.tokens)
    d = int(np.searchsorted(end_D, place, side="right"))
    piece, label, length = [], [], []
    while place < last:
      n = int(min(end_D[d], last)) - place
      at = int(stream.start_D[d] + stream.length_D[d] - (end_D[d] - place))
      piece.append(stream.token[at : at + n])
      label.append(stream.label_D[d])
      length.append(n)
      place, d = place + n, d + 1
    yield np.concatenate([[len(length)], length, label, *piece]).astype("<i4").tobytes()


def unpack(records: Sequence[bytes | None], T: int) -> dict[str, np.ndarray]:
  """Windows as a batch of B rows of T+1; segment 0 is padding, no record is all of it."""
  out = {f"{key}_BT": np.zeros((len(records), T + 1), np.int32) for key in KEYS}
  for b, record in enumerate(records):
    word = np.frombuffer(record or EMPTY, "<i4")
    S, n = word[0], len(word) - 1 - 2 * word[0]
    length_S, label_S = word[1 : 1 + S], word[1 + S : 1 + 2 * S]
    out["token_BT"][b, :n] = word[1 + 2 * S :]
    out["segment_BT"][b, :n] = np.repeat(np.arange(1, S + 1), length_S)
    out["label_BT"][b, :n] = np.repeat(label_S, length_S)
  return out
