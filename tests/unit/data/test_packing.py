"""Windows against a loop over tokens."""

import numpy as np
import pytest

from moejax.data import packing


def _stream(lengths, order=None):
  """Documents of distinct tokens 10, 11, ...; document d has label d."""
  length_D = np.array(lengths)
  order = np.arange(len(lengths)) if order is None else np.array(order)
  start_D = np.cumsum(length_D) - length_D
  token = np.arange(10, 10 + length_D.sum(), dtype="<u4")
  return packing.Stream(token, start_D[order], length_D[order], order)


def _oracle(stream, T):
  """(token, segment, label) of every place, window by window."""
  flat = []
  for start, length, label in zip(stream.start_D, stream.length_D, stream.label_D, strict=True):
    flat += [(int(stream.token[start + i]), int(label)) for i in range(length)]
  windows = []
  for first in range(0, len(flat) - 1, T):
    window, segment = [], 0
    for i, (token, label) in enumerate(flat[first : first + T + 1]):
      segment += i == 0 or label != window[-1][2]
      window.append((token, segment, label))
    windows.append(window + [(0, 0, 0)] * (T + 1 - len(window)))
  return np.array(windows).reshape(-1, T + 1, 3)


@pytest.mark.parametrize(
  "lengths, T",
  [([7, 1, 12, 3], 4), ([5], 4), ([4, 4, 4], 4), ([1] * 9, 3), ([30, 2], 7), ([2], 9), ([1], 4)],
)
def test_windows_are_the_stream_cut_at_every_T(lengths, T):
  stream = _stream(lengths, order=np.random.default_rng(0).permutation(len(lengths)))
  got = packing.unpack(list(packing.records(stream, T)), T)
  got = np.stack([got["token_BT"], got["segment_BT"], got["label_BT"]], axis=-1)
  np.testing.assert_array_equal(got, _oracle(stream, T))


def test_every_token_but_the_first_is_a_target_once():
  stream = _stream([9, 4, 17, 2])
  got = packing.unpack(list(packing.records(stream, 5)), 5)
  targets = got["token_BT"][:, 1:][got["segment_BT"][:, 1:] > 0]
  np.testing.assert_array_equal(targets, stream.token[1:])


def test_no_record_is_a_row_of_padding():
  got = packing.unpack([None, *packing.records(_stream([3]), 4)], 4)
  assert not got["segment_BT"][0].any() and got["segment_BT"][1].tolist() == [1, 1, 1, 0, 0]
