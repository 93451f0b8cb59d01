"""The cache folder: what is derived from a corpus is made once, whole or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Callable

from moejax.core.plugin import Wrong


def root(folder: str | None) -> pathlib.Path:
  """The folder of a config, else $MOEJAX_CACHE, else ~/.cache/moejax."""
  return pathlib.Path(folder or os.environ.get("MOEJAX_CACHE") or "~/.cache/moejax").expanduser()


def key(*parts) -> str:
  """A short name for a tuple of JSON values: equal parts, equal name.

  >>> key("a", 1) == key("a", 1) != key("a", 2)
  True
  """
  return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def writing(folder: pathlib.Path):
  """A full disk or a folder of somebody else is refused in one sentence."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    raise Wrong(
      f"data cache: cannot write {folder}: {reason}; "
      "free space there, or set data.cache or $MOEJAX_CACHE to another folder."
    ) from error


@contextlib.contextmanager
def locked(path: pathlib.Path):
  """One process at a time; the lock of a process that dies is free again."""
  with writing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
  with file:
    yield


def prepare(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """`folder`, filled by `build(temporary folder)` unless it is there; a rename makes it appear."""
  if folder.exists():
    return folder
  with locked(folder), writing(folder):
    if folder.exists():  # another process was first
      return folder
    # Some network file systems lock within a machine only: leave other machines' folders alone,
    # and let the rename decide who was first.
    prefix = f"{folder.name}.tmp-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{prefix}*"):  # of a process that was killed
      shutil.rmtree(left, ignore_errors=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
      build(temporary)
      temporary.chmod(0o755)  # mkdtemp's own is for one user; a cache may be shared
      temporary.rename(folder)
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  return folder
