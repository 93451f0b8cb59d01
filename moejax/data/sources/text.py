"""text:PATH: a file of text, a .jsonl file with a field `text`, or a directory of both.

The label is the field `label` of a line of .jsonl, else the first folder below PATH, else the name
of PATH. A long file is cut at blank lines into documents of some 16 thousand characters, so that a
single book has documents to hold out.
"""

import builtins
import codecs
import hashlib
import json
import pathlib

from moejax.core.plugin import Wrong
from moejax.data import caches, progress
from moejax.data.sources import Documents

LONGEST = 1 << 14  # characters of a document, up to the next blank line
BLOCK = 1 << 20


def pieces(lines, longest: int = LONGEST):
  """Lines as documents: cut at the first blank line after `longest`, at twice that anyway.

  >>> list(pieces(["ab\\n", "\\n", "cd\\n", "ef\\n", "\\n", "g"], longest=4))
  ['ab\\n\\n', 'cd\\nef\\n\\n', 'g']
  """
  piece, size = [], 0
  for line in lines:
    piece.append(line)
    size += len(line)
    if size >= 2 * longest or (size >= longest and not line.strip()):
      yield "".join(piece)
      piece, size = [], 0
  yield "".join(piece)


def open(argument, cfg, cache) -> Documents:
  """The documents of a path."""
  del cfg, cache
  path = pathlib.Path(argument).expanduser()
  if not argument or not path.exists():
    raise Wrong(
      f"text: there is nothing at {argument!r}; write data.source=text:PATH with the path of a "
      "text file, a .jsonl file or a directory."
    )
  files = _files(path) if path.is_dir() else [path]
  content, good, bad = hashlib.blake2b(digest_size=8), [], []
  for file in files:
    fault = _scan(file, content)
    (bad if fault else good).append((file, fault))
  if bad and not path.is_dir():
    raise Wrong(f"text: {path} {bad[0][1]}; give a file of UTF-8 text.")
  if not any(file.stat().st_size for file, _ in good):
    size = sum(file.stat().st_size for file in files)
    raise Wrong(
      f"text: {path} holds no text ({len(files)} files, {size:,} bytes); give one that does."
    )
  if bad:
    progress.tell(f"text: {len(bad)} files are left out, such as {bad[0][0]}, which {bad[0][1]}")
  labels = [(file, _label(file, path)) for file, _ in good]
  name = caches.key("text", content.hexdigest(), [label for _, label in labels])
  return Documents(name, lambda: _read(labels))


def _files(folder):
  """The files below a folder by name, without hidden ones."""
  below = lambda file: file.relative_to(folder).parts
  found = [file for file in folder.rglob("*") if file.is_file()]
  return sorted(file for file in found if not any(part.startswith(".") for part in below(file)))


def _label(file, path):
  parts = file.relative_to(path).parts
  path = path.resolve()  # "." has a name, too
  return parts[0] if len(parts) > 1 else path.stem if path.is_file() else path.name


def _scan(file, content) -> str | None:
  """Adds a file to the hash; what is wrong with it, if it is no text."""
  decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
  content.update(f"{file.suffix} {file.stat().st_size} ".encode())
  try:
    stream = builtins.open(file, "rb")
  except OSError as error:
    return f"cannot be read: {error.strerror}"
  with stream:
    while block := stream.read(BLOCK):
      content.update(block)
      try:
        decoder.decode(block)
      except UnicodeDecodeError:
        return f"({file.stat().st_size:,} bytes) is not UTF-8 text"
      if b"\0" in block:
        return f"({file.stat().st_size:,} bytes) is binary: byte {place + block.index(0)} is zero"
      place += len(block)
  try:
    decoder.decode(b"", final=True)
  except UnicodeDecodeError:
    return f"({place:,} bytes) ends in the middle of a character"
  return None


def _read(labels):
  for file, label in labels:
    with builtins.open(file, encoding="utf-8", newline="") as stream:
      if file.suffix == ".jsonl":
        yield from _jsonl(file, stream, label)
      else:  # a limit, because a file may be one endless line
        lines = iter(lambda: stream.readline(2 * LONGEST), "")
        yield from ((piece, label) for piece in pieces(lines) if piece.strip())


def _jsonl(file, stream, label):
  for number, line in enumerate(stream, 1):
    if not line.strip():
      continue
    try:
      item = json.loads(line)
      text = item["text"]
      own = item.get("label") or label
    except (ValueError, TypeError, KeyError):
      text = own = None
    if not isinstance(text, str):
      raise Wrong(
        f"text: line {number} of {file} is not an object with a text field: {line.strip()[:60]!r}; "
        'write one {"text": ...} a line.'
      )
    if text.strip():
      # JSON can spell half a character, which no encoding can.
      yield text.encode(errors="replace").decode(), str(own)
