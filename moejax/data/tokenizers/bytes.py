"""bytes: every byte of UTF-8 is its own token, 256 is the end of a document."""

import numpy as np

from moejax.core.plugin import Wrong


class Tokenizer:
  """257 ids.

  >>> tokenizer = Tokenizer()
  >>> tokenizer.encode("né"), tokenizer.decode([110, 195, 169, 256])
  ([110, 195, 169], 'né')
  """

  vocab = 257
  eos = 256
  fingerprint = "bytes"
  bytes_V = np.append(np.ones(256, np.int32), np.int32(0))

  def encode(self, text: str) -> list[int]:
    """The bytes of a text."""
    return list(text.encode())

  def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
    """The ids of many texts."""
    return [np.frombuffer(text.encode(), np.uint8) for text in texts]

  def decode(self, ids) -> str:
    """The text of ids; bytes that are no UTF-8 become the replacement character."""
    return bytes(int(i) for i in ids if i != self.eos).decode(errors="replace")


def load(argument, training, cache) -> Tokenizer:
  """The tokenizer, which has nothing to learn."""
  del training, cache
  if argument:
    raise Wrong(f"bytes: it takes no argument, got {argument!r}; write data.tokenizer=bytes.")
  return Tokenizer()
