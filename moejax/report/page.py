"""report.html and plots/*.png of one run: `write(workdir)`."""

import os
import pathlib

from moejax.core.plugin import Wrong
from moejax.report import choices, curves, domains, html, routing, style, tree
from moejax.report.read import Run, read
from moejax.report.style import duration, short

SAMPLE = 20_000  # characters of the text sample that are shown


def write(workdir) -> pathlib.Path:
  """Draws everything that the run has logged so far; returns the path of report.html."""
  run = read(workdir)
  with style.context():
    sections, plots = _sections(run)
    _save(run.path / "plots", plots)
    links = [s.split('"', 2)[1] for s in sections if s]
    text = html.page(run.name, _header(run, links), *sections)
  path = run.path / "report.html"
  html.write(path, text)
  return path


def numbers(run: Run) -> list[tuple[str, str]]:
  """The figures that stand for the run, each with what it is."""
  parameters = run.environment.get("parameters") or {}
  count = " / ".join(short(parameters[k]) for k in ("total", "active") if parameters.get(k))
  found = [
    (_number(run.last("loss", "eval"), "{:.4f}".format), "validation loss, nats per token"),
    (_number(run.last("perplexity", "eval"), "{:.2f}".format), "perplexity"),
    (_number(run.last("bits_per_byte", "eval"), "{:.3f}".format), "bits per byte"),
    (_number(run.last("loss"), "{:.4f}".format), "training loss, last step"),
    (_number(run.last("tokens"), short), "tokens trained on"),
    (_number(elapsed(run), duration), "training time"),
    (_number(median_speed(run), short), "tokens per second, median"),
    (count or None, "parameters, total / active"),
  ]
  return [(value, what) for value, what in found if value]


def elapsed(run: Run) -> float | None:
  """Seconds up to the last training step, the final evaluation and sample left out."""
  return run.last("time")


def median_speed(run: Run) -> float | None:
  """Tokens per second in the middle one of the logged steps."""
  speed = sorted(run.series("tokens_per_s")[1])
  return speed[len(speed) // 2] if speed else None


def state(run: Run) -> str:
  """In a sentence, how far the run is."""
  stages = run.config.get("stages") or [run.config.get("train") or {}]
  asked = sum(stage.get("steps") or 0 for stage in stages)
  step, resumes = run.last_step, run.kind("resume")
  if run.kind("done"):
    text = f"Finished after {step:,} steps"
  else:
    of = f" of {asked:,}" if asked else ""
    text = f"Not finished: step {step:,}{of} was the last logged"
  times = {1: "once", 2: "twice"}.get(len(resumes), f"{len(resumes)} times")
  return f"{text}, resumed {times}." if resumes else f"{text}."


def _number(value, form):
  return None if value is None else form(value)


def _sections(run: Run):
  """([html of every section], [all figures])."""
  maps, by_domain = routing.load_maps(run), domains.maps(run)
  flips, flip_tables, flip_notes = choices.flips(run)
  regret, regrets, regret_notes = choices.regret(run)
  groups = {
    "loss": curves.loss(run), "health": routing.health(run), "load": maps,
    "final": routing.final_load(run), "domains": by_domain,
    "flips": flips, "regret": regret,
    "balance": routing.balance(run), "optimiser": curves.optimiser(run) + curves.knobs(run),
    "speed": curves.throughput(run),
  }  # fmt: skip
  figures = {word: html.figures(plots) for word, plots in groups.items()}
  about_load = "Blue: more than the fair share of the choices. Orange: less."
  if len(maps) < len(run.layers):
    about_load += f" {len(maps)} of {len(run.layers)} layers are shown."
  quiet = _said(routing.quiet(run))
  kinds = html.table(*domains.table(run))
  sections = [
    html.section("loss", "Loss", "", figures["loss"]),
    html.section("health", "Router health", "A line per layer, from shallow to deep.", quiet,
                 figures["health"]),
    html.section("load", "Load of every expert over time", about_load, figures["load"]),
    html.section("final", "Load at the end", "", figures["final"]),
    html.section("domains", "Experts by domain", domains.ABOUT,
                 figures["domains"], html.table(*domains.specialisation(run)), kinds),
    html.section("flips", "Choices over time", choices.ABOUT_FLIPS, _said(flip_notes),
                 figures["flips"], *(html.table(*table) for table in flip_tables)),
    html.section("regret", "Were the choices good?", choices.ABOUT_REGRET, _said(regret_notes),
                 figures["regret"], html.table(*regrets)),
    html.section("balance", "Balance state", "What the controller has built up.",
                 figures["balance"]),
    html.section("optimiser", "Optimiser", "", figures["optimiser"]),
    html.section("speed", "Throughput", "", figures["speed"]),
    html.section("sample", "Sample", "Text that the trained model wrote.", _sample(run)),
    html.section("config", "Config", "What differs from a component's default stands out.",
                 tree.render(run.config, "run")),
    html.section("environment", "Environment", "", tree.render(run.environment)),
  ]  # fmt: skip
  return sections, [plot for plots in groups.values() for plot in plots]


def _said(sentences: list[str]) -> str:
  return "".join(f"<p>{html.escape(text)}</p>" for text in sentences)


def _header(run: Run, links: list[str]) -> str:
  contents = " ".join(f'<a href="#{word}">{word}</a>' for word in links)
  return (
    f"<header><h1>{html.escape(run.name)}</h1><p class='quiet'>{html.escape(state(run))}</p>"
    f"{html.notes(run.notes)}{html.tiles(numbers(run))}<nav>{contents}</nav></header>"
  )


def _sample(run: Run) -> str:
  text = run.sample[:SAMPLE]
  rest = len(run.sample) - len(text)
  more = f'<p class="quiet">{rest:,} more characters are in sample.txt.</p>' if rest else ""
  return f"<pre>{html.escape(text)}</pre>{more}" if text.strip() else ""


def _save(folder: pathlib.Path, plots: list[style.Plot]):
  """The figures as PNG files."""
  try:
    folder.mkdir(exist_ok=True)
    for plot in plots:
      part = folder / f".{plot.stem}.part.png"
      style.png(plot.figure, part)
      os.replace(part, folder / f"{plot.stem}.png")
  except OSError as error:
    raise Wrong(
      f"report: {folder} cannot be written ({error.strerror}); make room or change permissions."
    ) from error
