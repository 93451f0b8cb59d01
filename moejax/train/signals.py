"""SIGTERM and SIGINT as a wish: the loop ends after the step it is in, and saves."""

import signal
import threading


class Stop:
  """`wanted` turns true at the first signal; a second SIGINT interrupts at once."""

  KINDS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.wanted, self.name, self.before = False, "", {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self.before = {kind: signal.signal(kind, self._take) for kind in self.KINDS}
    return self

  def __exit__(self, *error):
    for kind, handler in self.before.items():
      signal.signal(kind, handler)

  def _take(self, kind, frame):
    if self.wanted and kind == signal.SIGINT:
      raise KeyboardInterrupt
    self.wanted, self.name = True, signal.Signals(kind).name
