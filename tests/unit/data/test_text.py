"""A corpus as batches: what is in them, and that the step alone says where a run is."""

import dataclasses
import itertools
import math
import threading

import numpy as np
import pytest

from moejax.core import config, plugin
from moejax.core.plugin import Wrong
from moejax.data import packing, prepare, text

KEYS = {"token_BT", "segment_BT", "label_BT"}


def _take(batches, n=None):
  """The next n batches, as one dict with a leading axis."""
  out = list(itertools.islice(batches, n))
  batches.close()
  return {key: np.stack([batch[key] for batch in out]) for key in KEYS}


def _documents(corpus, split):
  """(text, label ids) of every document that lies whole inside a row, its start and end seen."""
  got, out = _take(corpus.batches(split, 1, epochs=1)), []
  for token_T, segment_T, label_T in zip(
    *(got[f"{key}_BT"][:, 0] for key in packing.KEYS), strict=True
  ):
    for segment in range(2, segment_T.max()):
      here = segment_T == segment
      *ids, last = token_T[here]
      assert last == corpus.tokenizer.eos and corpus.tokenizer.eos not in ids
      out.append((corpus.tokenizer.decode(ids), set(label_T[here])))
  return out


def test_a_batch_is_three_arrays_of_T_plus_one(open_library):
  corpus = open_library()
  batch = next(corpus.batches("train", 4))
  assert set(batch) == KEYS
  assert all(array.shape == (4, 33) and array.dtype == np.int32 for array in batch.values())
  assert corpus.labels == ("mail", "notes", "poems")


def test_tokens_labels_and_segments_belong_to_the_documents(open_library, library):
  corpus = open_library(seq_len=2048)
  shelf = {file.read_text(): file.parent.name for file in library.rglob("*.txt")}
  for split in ("train", "validation"):
    found = _documents(corpus, split)
    assert len(found) > corpus.describe()["documents"][split] / 2
    assert all(label == {corpus.labels.index(shelf[text])} for text, label in found)


def test_held_out_documents_are_the_same_for_every_seed_and_tokenizer(open_library):
  held = []
  for seed, tokenizer in [(0, "bytes"), (7, "bytes"), (0, "bpe:300")]:
    corpus = open_library(seed, tokenizer=tokenizer, seq_len=2048)
    held.append({text for text, _ in _documents(corpus, "validation")})
    trained = {text for text, _ in _documents(corpus, "train")}
    assert trained and held[-1] and not trained & held[-1]
    assert corpus.describe()["documents"] == open_library().describe()["documents"]
  assert held[0] == held[1] and len(held[0] & held[2]) > 3


def test_every_epoch_reads_all_windows_in_another_order(open_library):
  corpus = open_library()
  windows = len(_take(corpus.batches("train", 1, epochs=1))["token_BT"])
  assert windows == math.ceil((corpus.num_tokens("train") - 1) / 32)
  two = _take(corpus.batches("train", 1), 2 * windows)["token_BT"][:, 0]
  first, second = two[:windows], two[windows:]
  sets = [{row.tobytes() for row in rows} for rows in (first, second)]
  assert sets[0] == sets[1] and len(sets[0]) == windows
  assert (first != second).any(axis=1).mean() > 0.9


def _rows(corpus):
  return [row.tobytes() for row in _take(corpus.batches("train", 1, epochs=1))["token_BT"]]


def test_the_seed_decides_the_order_of_documents_and_of_windows(open_library, tmp_path):
  first, again, other = (_rows(open_library(seed)) for seed in (0, 0, 1))
  assert first == again
  assert len(set(first) & set(other)) < len(first) / 2  # documents meet other neighbours
  for name in "ab":  # one document to train on leaves windows alone to shuffle
    (tmp_path / f"{name}.txt").write_text(" ".join(f"{name}{n}" for n in range(99)))
  first, other = (_rows(open_library(seed, source=f"text:{tmp_path}")) for seed in (0, 1))
  assert first != other and sorted(first) == sorted(other)


def test_a_tokenizer_learns_from_documents_for_training_alone(open_library, monkeypatch, tmp_path):
  bpe, seen = plugin.load("data.tokenizers", "bpe"), []

  def spy(texts, vocab, train=bpe.train):
    seen.extend(texts)
    return train(iter(seen), vocab)

  monkeypatch.setattr(bpe, "train", spy)
  corpus = open_library(tokenizer="bpe:300", seq_len=2048, cache=str(tmp_path))
  assert len(seen) == corpus.describe()["documents"]["train"]
  assert not set(seen) & {text for text, _ in _documents(corpus, "validation")}
  assert open_library(1, tokenizer="bpe:300", cache=str(tmp_path)).tokenizer.vocab == 300
  assert len(seen) == corpus.describe()["documents"]["train"]  # it learned once


def test_documents_are_tokenised_the_same_in_chunks_of_any_size(
  open_library, monkeypatch, tmp_path
):
  monkeypatch.setattr(prepare, "CHUNK", 700)
  assert _rows(open_library(cache=str(tmp_path))) == _rows(open_library())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_any_number_of_processes_resumes_at_any_step(open_library, split):
  corpus = open_library()
  whole = _take(corpus.batches(split, 4), 12)
  for start, processes in [(0, 2), (0, 4), (5, 1), (5, 2), (11, 4)]:
    parts = [
      _take(corpus.batches(split, 4, first_step=start, process=p, processes=processes), 12 - start)
      for p in range(processes)
    ]
    for key, array in whole.items():
      rows = np.concatenate([part[key] for part in parts], axis=1)
      np.testing.assert_array_equal(rows, array[start:], err_msg=f"{key} {start} {processes}")


def test_validation_is_read_once_and_its_end_is_padding(open_library):
  corpus = open_library()
  targets = corpus.num_tokens("validation") - 1
  rows = math.ceil(targets / 32)
  size = next(n for n in (5, 4, 3) if rows % n)
  got = _take(corpus.batches("validation", size))
  assert len(got["token_BT"]) == math.ceil(rows / size)
  assert (got["segment_BT"][..., 1:] > 0).sum() == targets
  assert (got["segment_BT"][-1, rows % size :] == 0).all()
  past = corpus.batches("validation", size, first_step=len(got["token_BT"]) + 3)
  assert list(past) == []


def test_reading_is_off_the_main_thread_and_ends_with_close(open_library, monkeypatch):
  seen, unpack = [], packing.unpack

  def spy(*args):
    seen.append(threading.current_thread())
    return unpack(*args)

  monkeypatch.setattr(packing, "unpack", spy)
  batches = open_library().batches("train", 2)
  next(batches)
  batches.close()
  (thread,) = set(seen)
  assert thread is not threading.main_thread()
  thread.join(timeout=10)
  assert not thread.is_alive() and len(seen) <= 6


def test_what_a_corpus_says_of_itself(open_library, library):
  corpus = open_library()
  about = corpus.describe()
  files = [file for file in library.rglob("*.txt")]
  assert sum(about["documents"].values()) == len(files) == 60
  assert sum(about["bytes"].values()) == sum(file.stat().st_size for file in files)
  for split in ("train", "validation"):  # a byte is a token, and every document has an end
    assert about["tokens"][split] == about["bytes"][split] + about["documents"][split]
    assert corpus.num_tokens(split) == about["tokens"][split]
  prints = {open_library(0, seq_len=16).fingerprint, open_library(1).fingerprint}
  assert corpus.fingerprint == open_library().fingerprint and corpus.fingerprint not in prints


def test_a_small_corpus_has_both_splits(tmp_path):
  (tmp_path / "two").mkdir()
  for name in "ab":
    (tmp_path / "two" / f"{name}.txt").write_text(f"document {name} " * 9)
  for share in (0.001, 0.999):
    section = {"source": f"text:{tmp_path / 'two'}", "tokenizer": "bytes", "seq_len": 8}
    corpus = text.open(text.Config(**section, validation=share, cache=str(tmp_path / "cache")), 0)
    assert corpus.describe()["documents"] == {"train": 1, "validation": 1}


WRONG = [
  ({"seq_len": 100_000}, "the train split has [0-9]+ tokens and a sequence needs .* 100001; lower"),
  ({"seq_len": 0}, "seq_len is 0"),
  ({"validation": 1.0}, "validation is 1.0; it must be at least 0 and below 1"),
  ({"source": "stdlib_txt"}, "has no 'stdlib_txt'. Did you mean 'stdlib_text'"),
  ({"source": "stdlib_text:3"}, "takes no argument, got '3'"),
  ({"tokenizer": "bpq:300"}, "has no 'bpq'. Did you mean 'bpe'"),
  ({"tokenizer": "bytes:3"}, "takes no argument, got '3'"),
  ({"tokenizer": "bpe:256"}, "'256' is no vocabulary size from 257"),
  ({"tokenizer": "bpe"}, "'' is no vocabulary size"),
]


@pytest.mark.parametrize("fields, match", WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_section_is_one_sentence(open_library, fields, match):
  with pytest.raises(Wrong, match=match):
    open_library(**fields)


def test_a_batch_that_cannot_be_is_refused(open_library):
  corpus = open_library()
  with pytest.raises(Wrong, match="a batch of 6 rows cannot be shared by 4 processes"):
    corpus.batches("train", 6, processes=4)
  with pytest.raises(Wrong, match=r"has [0-9]+ sequences of 32 tokens and a batch needs 5000"):
    corpus.batches("train", 5000)
  with pytest.raises(Wrong, match="no split 'valid'. Did you mean 'validation'"):
    corpus.batches("valid", 4)
  with pytest.raises(Wrong, match="the seed -1 is not from 0 to 4294967295; change train.seed"):
    open_library(-1)
  with pytest.raises(Wrong, match="the validation split has 0 tokens"):
    open_library(validation=0.0).batches("validation", 4)


def test_the_section_goes_through_the_config():
  section = config.section("data", {"seq_len": 8}, "data")
  assert section == text.Config(seq_len=8)
  assert dataclasses.replace(section, seq_len=256) == text.Config()


def test_a_batch_says_the_modality_of_every_token(open_library):
  corpus = open_library(modalities=(("poems",), ("notes",)), condition="modality")
  batch = next(corpus.batches("train", 4))
  want = np.array([2, 1, 0])[batch["label_BT"]]  # labels: mail, notes, poems
  np.testing.assert_array_equal(batch["modality_BT"], want)
  np.testing.assert_array_equal(batch["cond_BTC"], np.eye(3)[want])
  assert set(next(open_library(modalities=(("poems",),)).batches("train", 4))) == {
    *KEYS,
    "modality_BT",
  }


@pytest.mark.parametrize(
  ("lists", "match"),
  [
    ((("poem",),), r"data.modalities\[0\]: no document is labelled 'poem'. Did you mean 'poems'"),
    ((("poems",), ("poems",)), r"data.modalities\[1\]: 'poems' is listed twice"),
    (("poems",), r"data.modalities\[0\]: 'poems' is not a list of labels"),
  ],
)
def test_modalities_that_cannot_be_are_refused(open_library, lists, match):
  with pytest.raises(Wrong, match=match):
    open_library(modalities=lists)


def test_a_condition_without_modalities_is_refused():
  with pytest.raises(Wrong, match="condition is 'modality' and there are no modalities"):
    text.Config(condition="modality")
