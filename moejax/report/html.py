"""Pieces of a page that needs nothing but itself: no script, no network, light and dark."""

import html
import os
import pathlib

from moejax.core.plugin import Wrong
from moejax.report import style

_VARS = {i: "".join(f"--{n}:{c[i]};" for n, c in style.COLOURS.items()) for i in (0, 1)}
CSS = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#ffffff;LIGHT}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1f26;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:.2em 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .2em}
section{margin-top:44px}
p{margin:.3em 0 .9em;max-width:70ch}
.quiet,figcaption,p.about{color:var(--muted)}
nav{display:flex;flex-wrap:wrap;gap:2px 16px;margin:14px 0 0;font-size:.9rem}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,240px),1fr));gap:10px;
  margin:18px 0}
.tile{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:1.35rem;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.82rem}
.note{border-left:3px solid var(--orange);padding:2px 0 2px 12px;margin:8px 0}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--grid);border-radius:10px;
  padding:10px 12px;min-width:0}
figure.wide{grid-column:1/-1}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:inherit!important}
figcaption{font-size:.82rem;margin-top:4px}
.scroll{overflow-x:auto}
@media (max-width:600px){main{padding:14px 12px 48px}figure{padding:8px 6px}
  .broad{display:none}}
@media (min-width:601px){.narrow{display:none}}
.figures+.scroll,.scroll+.scroll{margin-top:18px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:4px 18px 4px 0;text-align:right;border-bottom:1px solid var(--grid);
  white-space:nowrap}
th{color:var(--muted);font-weight:500}
td.word,th.word{text-align:left}
pre{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px;
  white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem;line-height:1.45;margin:0}
.tree{columns:340px;overflow-wrap:anywhere;
  font:.85rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.tree details{padding-left:16px;break-inside:avoid-column}
.tree summary{cursor:pointer;margin-left:-16px}
.tree div{padding-left:16px}
.tree .set{color:var(--blue);font-weight:600}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px}
""".replace("LIGHT", _VARS[0]).replace("DARK", _VARS[1])  # fmt: skip
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Raw(str):
  """Text that is HTML already."""


def escape(value) -> str:
  """
  >>> escape("a < b"), escape(Raw("<b>"))
  ('a &lt; b', '<b>')
  """
  return value if isinstance(value, Raw) else html.escape(str(value))


def page(title: str, *parts: str) -> str:
  """A whole document; a policy forbids it to load anything."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
    f"<body><main>{''.join(parts)}</main></body></html>\n"
  )


def section(word: str, title: str, about: str, *parts: str) -> str:
  """A part of the page; without any content it is nothing."""
  if not any(parts):
    return ""
  about = f'<p class="about">{escape(about)}</p>' if about else ""
  return f'<section id="{word}"><h2>{escape(title)}</h2>{about}{"".join(parts)}</section>\n'


def tiles(items: list[tuple[str, str]]) -> str:
  """(value, what it is) as cards."""
  cards = (f'<div class="tile"><b>{escape(v)}</b><span>{escape(n)}</span></div>' for v, n in items)
  return f'<div class="tiles">{"".join(cards)}</div>'


def figures(plots: list[style.Plot]) -> str:
  """Figures side by side where there is room."""
  return f'<div class="figures">{"".join(map(_figure, plots))}</div>' if plots else ""


def table(head: list[str], rows: list[list], words: int = 1) -> str:
  """Numbers at the right, the first `words` columns at the left."""
  if not rows:
    return ""
  kind = lambda i: ' class="word"' if i < words else ""
  line = lambda cells, tag: "".join(
    f"<{tag}{kind(i)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells)
  )
  body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
  return (
    f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def notes(sentences: list[str]) -> str:
  """What a reader has to know before the figures."""
  return "".join(f'<p class="note">{escape(text)}</p>' for text in sentences)


def write(path: pathlib.Path, text: str):
  """The file in one piece: a reader never sees half a page."""
  part = path.with_name(f".{path.name}.part")
  try:
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
  except OSError as error:
    raise Wrong(
      f"report: {path} cannot be written ({error.strerror}); make room or change permissions."
    ) from error


def _figure(plot: style.Plot) -> str:
  caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
  picture = style.svg(plot.figure, plot.stem)
  if not plot.narrow:
    return f"<figure>{picture}{caption}</figure>"
  narrow = style.svg(plot.narrow, f"{plot.stem}-narrow")
  both = f'<div class="broad">{picture}</div><div class="narrow">{narrow}</div>'
  return f'<figure class="wide">{both}{caption}</figure>'
