"""Tables as plain text, for terminals."""


def table(head: list[str], rows: list[list]) -> str:
  """Columns side by side, the first at the left.

  >>> print(table(["layer", "rate"], [["layer_001", 0.25]]))
  layer          rate
  layer_001    0.2500
  """
  cell = lambda value: f"{value:.4f}" if isinstance(value, float) else str(value)
  lines = [head, *([cell(value) for value in row] for row in rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
  form = lambda line: [
    word.ljust(width) if i == 0 else word.rjust(max(width, 7))
    for i, (word, width) in enumerate(zip(line, widths, strict=True))
  ]
  return "\n".join("   ".join(form(line)).rstrip() for line in lines)
