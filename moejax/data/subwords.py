"""A tokenizer of the `tokenizers` package behind moejax's few methods."""

import hashlib
import re

import numpy as np
import tokenizers


class Tokenizer:
  """Ids of a text never hold a special token: `<|endoftext|>` inside a document is only text."""

  def __init__(self, inner: tokenizers.Tokenizer, end: str):
    inner.encode_special_tokens = True
    inner.no_truncation()
    inner.no_padding()
    self._inner = inner
    self.eos = inner.token_to_id(end)
    self.fingerprint = hashlib.sha256(f"{end} {inner.to_str()}".encode()).hexdigest()
    self.vocab = 1 + max(inner.get_vocab().values())
    self.bytes_V = _lengths(inner, self.vocab)

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any added at its ends."""
    return self._inner.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """The ids of many texts, on all cores."""
    return [e.ids for e in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids) -> str:
    """The text of ids; special tokens are left out."""
    return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)


def _lengths(inner, vocab: int) -> np.ndarray:
  """Bytes per id, from the ways in which tokenizers write their tokens; 0 for special ones."""
  byte_level = "ByteLevel" in str(inner.decoder)  # one character for each byte
  special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
  bytes_V = np.zeros(vocab, np.int32)
  for token, i in inner.get_vocab().items():
    if i in special:
      continue
    if byte_level:
      bytes_V[i] = len(token)
    elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):  # how sentencepiece says a byte
      bytes_V[i] = 1
    else:  # WordPiece marks a continued word, sentencepiece writes a space
      bytes_V[i] = len(token.removeprefix("##").replace("\u2581", " ").encode())
  return bytes_V
