"""A tokenizer of the `tokenizers` package behind moejax's few methods."""

import hashlib
import pathlib
import re

import numpy as np
import tokenizers


class Tokenizer:
  """Ids of text never contain a special token: `<|endoftext|>` in a document is only text."""

  def __init__(self, inner: tokenizers.Tokenizer, eos: int, fingerprint: str):
    inner.encode_special_tokens = True
    inner.no_truncation()
    inner.no_padding()
    self._inner = inner
    self.eos = eos
    self.fingerprint = fingerprint
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


def read(path: pathlib.Path, eos: str) -> Tokenizer:
  """The tokenizer of a tokenizer.json."""
  text = path.read_text(encoding="utf-8")
  inner = tokenizers.Tokenizer.from_str(text)
  return Tokenizer(inner, inner.token_to_id(eos), hashlib.sha256(text.encode()).hexdigest())


def _lengths(inner: tokenizers.Tokenizer, vocab: int) -> np.ndarray:
  """Bytes per id, from how the kinds of tokenizers write their tokens; 0 for special ones."""
  byte_level = "ByteLevel" in str(inner.decoder)  # one character per byte
  special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
  bytes_V = np.zeros(vocab, np.int32)
  for token, i in inner.get_vocab().items():
    if i in special:
      continue
    if byte_level:
      bytes_V[i] = len(token)
    elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):  # sentencepiece's way to say a byte
      bytes_V[i] = 1
    else:
      bytes_V[i] = len(token.removeprefix("##").replace("\u2581", " ").encode())
  return bytes_V
