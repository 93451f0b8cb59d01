"""What a run shows: a progress bar with the time left on a terminal, plain lines elsewhere."""

import sys

import rich.console
import rich.progress


def summary(step: int, total: int, fields: dict) -> str:
  """One logged step in a line."""
  line = (
    f"step {step:>{len(str(total))}}/{total}  loss {fields['loss']:.4f}"
    f"  lr {fields['lr']:.2e}  {fields['tokens_per_s']:,.0f} tokens/s"
    f"  {fields['step_ms']:.0f} ms  MFU {fields['mfu']:.1%}"
  )
  layers = fields["layers"].values()
  if layers:
    entropy = min(layer["load_entropy"] for layer in layers)
    line += f"  load entropy {entropy:.3f}  MaxVio {max(one['max_vio'] for one in layers):.2f}"
    dropped = max(layer["drop_fraction"] for layer in layers)
    line += f"  dropped {dropped:.1%}" if dropped else ""
  return line + (f"  SKIPPED {fields['skipped']}" if fields["skipped"] else "")


def make(total: int, terminal: bool | None = None):
  """The display for this process; None asks standard output whether it is a terminal."""
  return Bar(total) if (sys.stdout.isatty() if terminal is None else terminal) else Plain()


class Plain:
  """One line per logged step."""

  def __enter__(self):
    return self

  def __exit__(self, *error):
    return None

  def step(self, step: int) -> None:
    """Nothing: lines come with summary()."""

  def line(self, text: str) -> None:
    """A line."""
    print(text, flush=True)

  summary = line


class Bar:
  """A bar that stays at the bottom, with the last logged step beside it."""

  def __init__(self, total: int):
    columns = (
      rich.progress.BarColumn(bar_width=24),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TextColumn("left"),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn("{task.description}"),
    )
    self.bar = rich.progress.Progress(*columns, console=rich.console.Console())
    self.task = self.bar.add_task("compiling", total=total)

  def __enter__(self):
    self.bar.start()
    return self

  def __exit__(self, *error):
    self.bar.stop()

  def step(self, step: int) -> None:
    """Moves the bar."""
    self.bar.update(self.task, completed=step)

  def line(self, text: str) -> None:
    """A line above the bar."""
    self.bar.console.print(text, markup=False, highlight=False)

  def summary(self, text: str) -> None:
    """The logged step, beside the bar."""
    self.bar.update(self.task, description=text.partition("  ")[2])
