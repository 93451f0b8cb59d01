"""The file of a trace: who chose what, step by step, a few bits per choice.

A file is a head and blocks, one per recorded batch, each behind its length and checksum, so that a
file which ends anywhere is read up to its last whole block:

  head   b"MOETRACE", uint32 length, uint32 CRC-32, JSON: see Head
  block  uint32 length, uint32 CRC-32, then uint32 step, batch and CRC-32 of the batch's tokens,
         label of every token, and per layer ids, gates, margin and boundary

Numbers are little-endian. An id takes ceil(log2(U + 1)) bits: 0 is an unused choice, u + 1 is id u.
Labels take ceil(log2(Y)) bits. Gates have the dtype the head says, margins are float16.
"""

import dataclasses
import io
import json
import pathlib
import struct
import zlib

import numpy as np

from moejax.core.plugin import Wrong

MAGIC, FORMAT = b"MOETRACE", 1
PREFIX = struct.Struct("<II")  # length and CRC-32 of what follows
STAMP = struct.Struct("<III")
GATES = ("float16", "float32", "none")


@dataclasses.dataclass(frozen=True)
class Head:
  layers: dict  # layer_NNN -> {"K": choices, "U": ids}
  tokens: int  # N, of a batch
  gates: str = "float16"
  labels: tuple = ()  # names of the kinds of text
  about: dict = dataclasses.field(default_factory=dict)  # model, data, split, batch_size, ...


@dataclasses.dataclass(frozen=True)
class Block:
  step: int  # of the parameters
  batch: int  # which of the split
  text: int  # CRC-32 of the batch's tokens
  label_N: np.ndarray
  layers: dict  # layer_NNN -> {"expert_NK", "gate_NK" or None, "margin_N", "boundary_N"}


@dataclasses.dataclass(frozen=True)
class Trace:
  path: pathlib.Path
  head: Head
  blocks: list[Block]
  damage: str | None  # what is wrong with the file, in a sentence


def pack(value, width: int) -> bytes:
  """Numbers below 2**width, `width` bits each.

  >>> pack([1, 2, 3], 2).hex(), unpack(pack([1, 2, 3], 2), 3, 2).tolist()
  ('39', [1, 2, 3])
  """
  value_M1 = np.asarray(value, np.uint32).reshape(-1, 1)
  return np.packbits(
    (value_M1 >> np.arange(width, dtype=np.uint32)) & 1, bitorder="little"
  ).tobytes()


def unpack(data: bytes, count: int, width: int) -> np.ndarray:
  """The inverse of pack, for `count` numbers."""
  bit_M = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
  place = np.left_shift(1, np.arange(width, dtype=np.int32), dtype=np.int32)
  return bit_M.reshape(count, width).astype(np.int32) @ place


def text_sum(token) -> int:
  """The mark of a batch's text."""
  return zlib.crc32(np.ascontiguousarray(token, "<i4").tobytes())


def encode(head: Head, block: Block) -> bytes:
  """A block as it stands in the file, without length and checksum."""
  parts = [STAMP.pack(block.step, block.batch, block.text), pack(block.label_N, _label_bits(head))]
  for name, size in head.layers.items():
    layer = block.layers[name]
    parts.append(pack(layer["expert_NK"] + 1, size["U"].bit_length()))
    if head.gates != "none":
      parts.append(_bytes(layer["gate_NK"], head.gates))
    parts += [_bytes(layer[word], "float16") for word in ("margin_N", "boundary_N")]
  return b"".join(parts)


def decode(head: Head, data: bytes) -> Block:
  """The inverse of encode."""
  take, N = io.BytesIO(data).read, head.tokens
  step, batch, text = STAMP.unpack(take(STAMP.size))
  numbers = lambda count, width: unpack(take(-(-count * width // 8)), count, width)
  floats = lambda count, kind: np.frombuffer(take(count * np.dtype(kind).itemsize), _little(kind))
  label_N, layers = numbers(N, _label_bits(head)), {}
  for name, size in head.layers.items():
    K = size["K"]
    expert_NK = numbers(N * K, size["U"].bit_length()).reshape(N, K) - 1
    gate_NK = None if head.gates == "none" else floats(N * K, head.gates).reshape(N, K)
    margin_N, boundary_N = floats(N, "float16"), floats(N, "float16")
    layers[name] = {
      "expert_NK": expert_NK, "gate_NK": gate_NK, "margin_N": margin_N, "boundary_N": boundary_N
    }  # fmt: skip
  return Block(step, batch, text, label_N, layers)


class Writer:
  """Adds blocks to a file, each whole or not at all.

  A file that is there with the same head is gone on with: its blocks after step `keep` and what is
  damaged are cut off first.
  """

  def __init__(self, path, head: Head, keep: int = -1):
    self.head, path = head, pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = _framed(_head_bytes(head), MAGIC)
    old = path.read_bytes() if path.exists() else b""
    end = len(start) if old.startswith(start) else 0
    for at, data in _frames(old, end) if end else ():
      if STAMP.unpack_from(data)[0] > keep:
        break
      end = at
    self.file = path.open("r+b" if end else "wb")
    self.file.truncate(end)
    self.file.seek(end)
    if not end:
      self.file.write(start)
    self.file.flush()

  def add(self, block: Block) -> None:
    """One more block, in the file when this returns."""
    self.file.write(_framed(encode(self.head, block)))
    self.file.flush()

  def close(self) -> None:
    """No more blocks."""
    self.file.close()


def read(path) -> Trace:
  """The whole blocks of a file; what comes after the last of them is told in `damage`."""
  head, end = _start(path)
  path = pathlib.Path(path)
  data = path.read_bytes()
  frames = list(_frames(data, end))
  blocks = [decode(head, part) for _, part in frames]
  end = frames[-1][0] if frames else end
  return Trace(path, head, blocks, _damage(path, data, end, blocks))


def read_head(path) -> Head:
  """What the blocks of a file are of, without reading them."""
  return _start(path)[0]


def _start(path):
  """(head, where the first block begins)."""
  path, first = pathlib.Path(path), len(MAGIC) + PREFIX.size
  if not path.is_file():
    raise Wrong(f"trace: there is no file {path}; `moejax trace record RUN` writes one.")
  with path.open("rb") as file:
    data = file.read(first)
    if not data.startswith(MAGIC):
      raise Wrong(f"trace: {path} is no trace; give a file that `moejax trace record` wrote.")
    if len(data) == first:
      data += file.read(PREFIX.unpack_from(data, len(MAGIC))[0])
  found = _frame(data, len(MAGIC))
  if found is None:
    raise Wrong(f"trace: {path} is truncated or damaged within its head; record it again.")
  end, content = found
  content = json.loads(content)
  if content.pop("format") != FORMAT:
    raise Wrong(f"trace: {path} is not of format {FORMAT}, which this version reads; record again.")
  return Head(**{**content, "labels": tuple(content["labels"])}), end


def _damage(path, data, end, blocks):
  """A sentence on what follows the last whole block, None if nothing does."""
  rest = len(data) - end
  if not rest:
    return None
  whole = rest >= PREFIX.size and rest - PREFIX.size >= PREFIX.unpack_from(data, end)[0]
  how = "damaged" if whole else "truncated"
  where = "before its first step is whole"
  if blocks:
    where = f"after step {blocks[-1].step} (batch {blocks[-1].batch})"
  return (
    f"trace {path}: {how} {where}; {rest} bytes after it are not used. Record it again, or go on"
    f" with the {len(blocks)} that can be read."
  )


def _label_bits(head):
  return max(len(head.labels) - 1, 0).bit_length()


def _little(kind):
  return np.dtype(kind).newbyteorder("<")


def _bytes(array, kind):
  return np.ascontiguousarray(array, _little(kind)).tobytes()


def _head_bytes(head):
  return json.dumps({"format": FORMAT, **dataclasses.asdict(head)}, sort_keys=True).encode()


def _framed(data, magic=b""):
  return magic + PREFIX.pack(len(data), zlib.crc32(data)) + data


def _frame(data, at):
  """(end, content) of the frame that starts at a place, None if it is not whole."""
  if len(data) < at + PREFIX.size:
    return None
  length, checksum = PREFIX.unpack_from(data, at)
  content = data[at + PREFIX.size : at + PREFIX.size + length]
  if len(content) < length or zlib.crc32(content) != checksum:
    return None
  return at + PREFIX.size + length, content


def _frames(data, at):
  """(end, content) of one whole frame after the other."""
  while (found := _frame(data, at)) is not None:
    yield found
    at = found[0]
