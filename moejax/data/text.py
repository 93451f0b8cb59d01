"""Text as batches: a source of documents, a tokenizer, packed windows, rows by step.

Everything derived is cached: the tokenizer, the tokens of all documents, the windows of one order.
Row i of training is a pure function of (seed, i), and batch s holds rows s*B .. s*B+B-1 whatever
the number of processes, so the step alone says where in the data a run is.
"""

import dataclasses
import hashlib
import json

import grain
import numpy as np
from array_record.python import array_record_module

from moejax.core import plugin
from moejax.core.plugin import Wrong
from moejax.data import cache as caches
from moejax.data import packing, progress
from moejax.data.tokenizers import Corpus as Training

SPLITS = ("train", "validation")
CHUNK = 1 << 20  # characters tokenised at once
READING = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


@dataclasses.dataclass(frozen=True)
class Config:
  source: str = "stdlib_text"
  seq_len: int = 256
  tokenizer: str = "bpe:2048"
  validation: float = 0.05  # share of the documents held out, chosen by the hash of their text
  cache: str | None = None  # a folder; None: $MOEJAX_CACHE, else ~/.cache/moejax
  text_feature: str | None = None  # tfds: which feature is the text; None: the only one there is
  label_feature: str | None = None  # tfds: which feature is the domain; None: the only class label

  def __post_init__(self):
    if self.seq_len < 1:
      raise Wrong(f"data.seq_len is {self.seq_len}; it must be at least 1.")
    if not 0 <= self.validation < 1:
      raise Wrong(f"data.validation is {self.validation}; it must be at least 0 and below 1.")


class Corpus:
  """A prepared corpus."""

  def __init__(self, tokenizer, seed: int, seq_len: int, folder, about: dict):
    self.tokenizer = tokenizer
    self.labels = tuple(about["labels"])
    self.fingerprint = about["fingerprint"]
    self._seed = seed
    self._T = seq_len
    self._about = about
    self._files = {split: folder / f"{split}.array_record" for split in SPLITS}

  def num_tokens(self, split: str) -> int:
    """How many tokens a split has, ends of documents included."""
    return self._about["tokens"][split]

  def describe(self) -> dict:
    """What the corpus is, for a report."""
    return dict(self._about)

  def batches(self, split, batch_size, first_step=0, process=0, processes=1, epochs=None):
    """Process `process`'s rows of the batches from `first_step` on; close() ends the reading.

    Training goes on for ever unless `epochs` is given, and every epoch has its own order.
    Validation is read once in a fixed order. What ends, ends with rows of padding.
    """
    if split not in SPLITS:
      raise Wrong(f"data has no split {split!r}. {plugin.hint(split, SPLITS)}")
    if batch_size < 1 or batch_size % processes:
      raise Wrong(
        f"a batch of {batch_size} rows cannot be shared by {processes} processes; "
        "make train.batch_size a multiple of their number."
      )
    T, local = self._T, batch_size // processes
    windows = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(self._files[split]))
    if split == "train":
      windows = windows.seed(self._seed).shuffle().repeat(epochs)
    rows = windows.map(lambda record: packing.unpack(record, T))

    def batch(step):
      first = step * batch_size + process * local
      items = [rows[i] if i < len(rows) else packing.empty(T) for i in range(first, first + local)]
      return {f"{k}_BT": np.stack([item[k] for item in items]) for k in items[0]}

    steps = -(-len(rows) // batch_size)
    return iter(grain.MapDataset.range(first_step, steps).map(batch).to_iter_dataset(READING))


def open(cfg: Config, seed: int) -> Corpus:
  """The corpus of a config, prepared if it is not in the cache."""
  cache = caches.root(cfg.cache)
  name, _, argument = cfg.source.partition(":")
  documents = plugin.load("data.sources", name).open(argument, cfg, cache)
  hidden = _held_out(documents, cfg.validation)
  tokenizer = _tokenizer(cfg, documents, hidden, cache)
  name = caches.key(documents.fingerprint, tokenizer.fingerprint)
  tokens = caches.prepare(
    cache / "tokens" / name, lambda folder: _tokenise(folder, cfg, documents, tokenizer)
  )
  name = caches.key(name, cfg.seq_len, cfg.validation, seed)
  folder = caches.prepare(
    cache / "windows" / name, lambda folder: _pack(folder, tokens, cfg, hidden, seed, name)
  )
  about = json.loads((folder / "about.json").read_text())
  return Corpus(tokenizer, seed, cfg.seq_len, folder, about)


def _held_out(documents, share) -> np.ndarray:
  """Which documents are validation: the hash of the text decides, not seed, order or tokenizer."""
  hash_D = np.array([_hash(text) for text, _ in documents.read()])
  hidden_D = hash_D < share
  if share and len(hash_D) > 1:  # a small corpus must not end up on one side
    hidden_D[np.argmin(hash_D)] = True
    hidden_D[np.argmax(hash_D)] = False
  return hidden_D


def _hash(text: str) -> float:
  """A number in [0, 1) that belongs to a text."""
  digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=6).digest()
  return int.from_bytes(digest, "big") / 2**48


def _tokenizer(cfg, documents, hidden, cache):
  """The tokenizer of a config; one that learns sees training documents only."""
  name, _, argument = cfg.tokenizer.partition(":")
  seen = lambda: (text for (text, _), out in zip(documents.read(), hidden, strict=True) if not out)
  fingerprint = caches.key(documents.fingerprint, cfg.validation)
  training = Training(fingerprint, seen, int((~hidden).sum()))
  return plugin.load("data.tokenizers", name).load(argument, training, cache)


def _tokenise(folder, cfg, documents, tokenizer):
  """Writes the ids of all documents as one flat array, and where each document lies in it."""
  what = f"tokenising {cfg.source} with {cfg.tokenizer}"
  lengths, labels, sizes, chunk, size = [], [], [], [], 0
  with (folder / "token.bin").open("wb") as out:

    def flush():
      for ids in tokenizer.encode_batch(chunk):
        out.write(np.array([*ids, tokenizer.eos], "<u4").tobytes())
        lengths.append(len(ids) + 1)
      chunk.clear()

    for text, label in progress.track(documents.read(), documents.count, what):
      labels.append(label)
      sizes.append(len(text.encode()))
      chunk.append(text)
      size += len(text)
      if size > CHUNK:
        flush()
        size = 0
    flush()
  names, label_D = np.unique(labels, return_inverse=True)
  np.savez(folder / "documents.npz", length_D=lengths, label_D=label_D, bytes_D=sizes)
  (folder / "labels.json").write_text(json.dumps(names.tolist()))


def _pack(folder, tokens, cfg, hidden_D, seed, fingerprint):
  """Writes the windows of both splits for one order of the documents."""
  docs = np.load(tokens / "documents.npz")
  length_D, label_D, bytes_D = docs["length_D"], docs["label_D"], docs["bytes_D"]
  start_D = np.cumsum(length_D) - length_D
  token = np.memmap(tokens / "token.bin", "<u4", "r")
  about = {
    "source": cfg.source,
    "tokenizer": cfg.tokenizer,
    "fingerprint": fingerprint,
    "labels": json.loads((tokens / "labels.json").read_text()),
    "documents": {}, "tokens": {}, "bytes": {}, "windows": {},
  }  # fmt: skip
  for split, in_D in zip(SPLITS, (~hidden_D, hidden_D), strict=True):
    order = np.flatnonzero(in_D)
    if split == "train":
      order = np.random.default_rng(seed).permutation(order)
    stream = packing.Stream(token, start_D[order], length_D[order], label_D[order])
    if split == "train" and stream.tokens <= cfg.seq_len:
      raise Wrong(
        f"data: the train split has {stream.tokens} tokens and a sequence needs "
        f"{cfg.seq_len + 1}; lower data.seq_len or give more text."
      )
    path = str(folder / f"{split}.array_record")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1,zstd:1")
    for record in packing.records(stream, cfg.seq_len):
      writer.write(record)
    writer.close()
    about["documents"][split] = len(order)
    about["tokens"][split] = stream.tokens
    about["bytes"][split] = int(bytes_D[order].sum())
    about["windows"][split] = stream.windows(cfg.seq_len)
  (folder / "about.json").write_text(json.dumps(about, indent=1))
