"""Packing: documents of any length become windows of T+1 tokens, by plain index arithmetic.

The documents of a split, in one shuffled order, form one long stream. Window w covers the places
w*T .. w*T+T of it: neighbours share one token, so each place but the first is a target once. The
end of the stream, shorter than a window, is padded.
"""

import dataclasses

import numpy as np


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


def unpack(record: bytes, T: int) -> dict[str, np.ndarray]:
  """A window as three rows of T+1; segment 0 is padding."""
  word = np.frombuffer(record, "<i4")
  S = word[0]
  length_S, label_S, token = word[1 : 1 + S], word[1 + S : 1 + 2 * S], word[1 + 2 * S :]
  rows = {
    "token": token,
    "segment": np.repeat(np.arange(1, S + 1), length_S),
    "label": np.repeat(label_S, length_S),
  }
  return {k: np.pad(row.astype(np.int32), (0, T + 1 - len(row))) for k, row in rows.items()}


def empty(T: int) -> dict[str, np.ndarray]:
  """A window of padding."""
  return {k: np.zeros(T + 1, np.int32) for k in ("token", "segment", "label")}
