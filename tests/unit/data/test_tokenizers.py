"""Tokenizers: exact round trips, byte counts, the same result every time."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.data.tokenizers import Training

TEXTS = [
  "the router sends every token to the experts that it prefers\n" * 5,
  "  def choose(scores):\n    return scores.argmax()\n" * 5,
]
HARD = [
  "", " ", "\n\n\t \r\n", "plain words", "  two  spaces  ", "na\u00efve \u2014 \u00bd",
  "\u4e2d\u6587\u5b57", "\U0001f9ea\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301 \u00e9",
  "\x00\x01\x7f\ufeff\ufffd", "<|endoftext|> is text here", "\u0120\u010a not a space",
  "".join(map(chr, range(0x100))), "x" * 999,
]  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory):
  """load("name:argument"), each tokenizer once."""
  cache, made = tmp_path_factory.mktemp("tokenizers"), {}

  def make(name):
    stem, _, argument = name.partition(":")
    training = Training("two texts", lambda: iter(TEXTS), len(TEXTS))
    if name not in made:
      made[name] = plugin.load("data.tokenizers", stem).load(argument, training, cache)
    return made[name]

  return make


@pytest.fixture(scope="module")
def from_file(load, tmp_path_factory):
  """The name of a tokenizer in a file of its own."""
  path = tmp_path_factory.mktemp("file") / "tokenizer.json"
  path.write_text(load("bpe:300")._inner.to_str())
  return f"file:{path}"


@pytest.mark.parametrize("name", ["bytes", "bpe:257", "bpe:300", "file"])
def test_every_text_comes_back_exactly(load, from_file, name):
  tokenizer = load(from_file if name == "file" else name)
  for text in HARD + TEXTS:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos]) == text  # the end is no text
    assert all(0 <= i < tokenizer.vocab and i != tokenizer.eos for i in ids)
    assert tokenizer.bytes_V[np.array(ids, int)].sum() == len(text.encode())
  batch = tokenizer.encode_batch(HARD)
  assert [list(ids) for ids in batch] == [tokenizer.encode(text) for text in HARD]
  assert tokenizer.bytes_V.shape == (tokenizer.vocab,) and tokenizer.bytes_V[tokenizer.eos] == 0


def test_bpe_learns_as_many_tokens_as_asked_and_shortens_its_text(load):
  assert load("bpe:257").vocab == load("bytes").vocab == 257
  assert load("bpe:300").vocab == 300
  length = [len(load(name).encode(TEXTS[0])) for name in ("bytes", "bpe:257", "bpe:300")]
  assert length[0] == length[1] > 2 * length[2]


def test_bpe_is_the_same_every_time(load):
  bpe = plugin.load("data.tokenizers", "bpe")
  again = [bpe.train(iter(TEXTS), 300).to_str() for _ in range(3)]
  fresh = tokenizers.Tokenizer.from_str(again[0])
  assert again[0] == again[1] == again[2]
  assert fresh.get_vocab() == load("bpe:300")._inner.get_vocab()


def test_a_trained_tokenizer_is_kept_by_what_it_was_trained_on(tmp_path):
  bpe, read = plugin.load("data.tokenizers", "bpe"), []

  def training(fingerprint):
    return Training(fingerprint, lambda: read.append(fingerprint) or iter(TEXTS), 2)

  first, again, _ = (bpe.load("300", training(name), tmp_path) for name in ("a", "a", "b"))
  assert read == ["a", "b"] and first.fingerprint == again.fingerprint


def test_bytes_of_other_kinds_of_tokenizers(tmp_path):
  vocab = {"</s>": 0, "\u2581the": 1, "<0x0A>": 2, "\u00e9": 3, "##ing": 4, "un": 9}
  inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="un"))
  inner.pre_tokenizer = pre_tokenizers.Whitespace()
  inner.add_special_tokens(["</s>"])
  inner.save(str(tmp_path / "words.json"))
  tokenizer = plugin.load("data.tokenizers", "file").load(str(tmp_path / "words.json"), None, None)
  assert tokenizer.eos == 0 and tokenizer.vocab == 10  # ids may have gaps
  assert tokenizer.bytes_V.tolist() == [0, 4, 1, 2, 3, 0, 0, 0, 0, 2]


def test_a_file_that_is_no_tokenizer_is_one_sentence(tmp_path):
  load = lambda path: plugin.load("data.tokenizers", "file").load(str(path), None, None)
  with pytest.raises(Wrong, match="nowhere.json' is no file; write data.tokenizer=file:PATH"):
    load(tmp_path / "nowhere.json")
  (tmp_path / "list.json").write_text("[1, 2]")
  with pytest.raises(Wrong, match=r"list.json \(6 bytes\) is no tokenizer.json"):
    load(tmp_path / "list.json")
  tokenizers.Tokenizer(models.WordLevel({"un": 0}, unk_token="un")).save(str(tmp_path / "e.json"))
  with pytest.raises(Wrong, match=r"has no token that ends a document, none of <\|endoftext\|>"):
    load(tmp_path / "e.json")
