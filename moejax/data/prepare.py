"""From documents to files in the cache: an index, the tokens, the windows of one order.

Each is keyed by what it is made of, so three seeds share one tokenisation, and two tokenizers or
seeds the same held-out documents.
"""

import dataclasses
import hashlib
import json
import pathlib

import array_record.python.array_record_module as array_record
import numpy as np

from moejax.core.plugin import Wrong
from moejax.data import caches, packing, progress

SPLITS = ("train", "validation")
CHUNK = 1 << 20  # characters tokenised at once


@dataclasses.dataclass(frozen=True)
class Index:
  """What is known of D documents without their text."""

  name: str
  labels: tuple[str, ...]
  label_D: np.ndarray
  bytes_D: np.ndarray
  hash_D: np.ndarray  # a number in [0, 1) that belongs to the text

  def held_out(self, share: float) -> np.ndarray:
    """Which documents are validation: their text decides, not seed, order or tokenizer."""
    out_D = self.hash_D < share
    if share and len(out_D) > 1:  # a small corpus must not end up on one side
      out_D[np.argmin(self.hash_D)] = True
      out_D[np.argmax(self.hash_D)] = False
    return out_D


def index(cache: pathlib.Path, documents, what: str) -> Index:
  """Reads every document once."""

  def build(folder):
    labels, sizes, hashes = [], [], []
    for text, label in progress.track(documents.read(), None, f"reading {what}"):
      raw = text.encode()
      labels.append(label)
      sizes.append(len(raw))
      hashes.append(int.from_bytes(hashlib.blake2b(raw, digest_size=6).digest(), "big") / 2**48)
    names, label_D = np.unique(labels, return_inverse=True)
    np.savez(folder / "index.npz", label_D=label_D, bytes_D=sizes, hash_D=hashes)
    (folder / "labels.json").write_text(json.dumps(names.tolist()))

  name = caches.key("index", documents.fingerprint)
  folder = caches.prepare(cache / "index" / name, build)
  with np.load(folder / "index.npz") as arrays:
    return Index(name, tuple(json.loads((folder / "labels.json").read_text())), **arrays)


def tokens(cache: pathlib.Path, documents, known: Index, tokenizer, what: str) -> pathlib.Path:
  """The ids of all documents as one flat file, and the length of each, end token included."""

  def build(folder):
    lengths, chunk = [], []
    with (folder / "token.bin").open("wb") as out:

      def flush():
        for ids in tokenizer.encode_batch(chunk):
          out.write(np.append(ids, tokenizer.eos).astype("<u4").tobytes())
          lengths.append(len(ids) + 1)
        chunk.clear()

      size = 0
      for text, _ in progress.track(documents.read(), len(known.label_D), f"tokenising {what}"):
        chunk.append(text)
        size += len(text)
        if size > CHUNK:
          flush()
          size = 0
      flush()
    np.save(folder / "length_D.npy", np.array(lengths))

  return caches.prepare(cache / "tokens" / caches.key(known.name, tokenizer.fingerprint), build)


def windows(cache: pathlib.Path, known: Index, flat: pathlib.Path, cfg, seed: int):
  """The folder with both splits as array_record, and what there is to say about them."""
  length_D = np.load(flat / "length_D.npy")
  start_D = np.cumsum(length_D) - length_D
  out_D = known.held_out(cfg.validation)
  rng = np.random.default_rng(seed)
  orders = {"train": rng.permutation(np.flatnonzero(~out_D)), "validation": np.flatnonzero(out_D)}
  name = caches.key(flat.name, cfg.seq_len, cfg.validation, seed)

  def build(folder):
    token = np.memmap(flat / "token.bin", "<u4", "r")
    for split, order_D in orders.items():
      stream = packing.Stream(token, start_D[order_D], length_D[order_D], known.label_D[order_D])
      records, total = packing.records(stream, cfg.seq_len), stream.windows(cfg.seq_len)
      what = f"packing {split} sequences of {cfg.seq_len}"
      _write(folder / f"{split}.array_record", progress.track(records, total, what))

  about = {
    "source": cfg.source,
    "tokenizer": cfg.tokenizer,
    "fingerprint": name,
    "labels": list(known.labels),
    "documents": {split: len(order_D) for split, order_D in orders.items()},
    "tokens": {split: int(length_D[order_D].sum()) for split, order_D in orders.items()},
    "bytes": {split: int(known.bytes_D[order_D].sum()) for split, order_D in orders.items()},
  }
  if about["tokens"]["train"] <= cfg.seq_len:
    raise Wrong(
      f"data: the train split has {about['tokens']['train']} tokens and a sequence needs "
      f"data.seq_len + 1 = {cfg.seq_len + 1}; lower data.seq_len or give more text."
    )
  return caches.prepare(cache / "windows" / name, build), about


def _write(path, records):
  """An array_record file that is read one record at a time."""
  try:
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    for record in records:
      writer.write(record)
    writer.close()
  except RuntimeError as error:  # what a full disk is there
    raise OSError(str(error)) from error
