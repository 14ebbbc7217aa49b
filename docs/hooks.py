"""What mkdocs draws and writes into the pages: pictures of strategies and surgeries, the table of keys. `make docs` runs it."""

import html
import io
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
PICTURE = re.compile(r"<!-- picture: (\w+) (\w+) -->")
OUTSIDE = re.compile(r"\[([^]]*)\]\(\.\./([^)]+)\)")
GREY, TEAL, AMBER = "#e8ebee", "#8fd0c6", "#f3d7a0"


def on_page_markdown(markdown, page, config, files):
    markdown = markdown.replace("(../SECURITY.md)", "(security.md)")
    markdown = OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)" if link[1] != link[2] else f"`{link[2]}`", markdown)
    markdown = PICTURE.sub(lambda found: _svg(found[2], *DRAWN[found[1]](found[2])), markdown)
    return markdown.replace("<!-- keys -->", _keys())


def _svg(name, figure, what):
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=False)
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)  # ids are the page's: each picture has its own
    svg = svg.replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(what)}" style="max-width:100%;height:auto" ', 1
    )
    return "<p>" + re.sub(r"\n\s*", " ", svg) + "</p>"  # one line, which Markdown leaves alone


def _strategy(name):
    """As `layergraft plan` has it, for a convolution at layer2.0.conv1 of a ResNet-20 over 10 epochs."""
    from hydra import compose, initialize_config_dir

    from layergraft.config.compose import conf_dir, to_config
    from layergraft.runs.plan import plan_run
    from layergraft.strategies.timeline import figure

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        asked = [f"strategy={name}", "host=resnet20", "site=layer2.0.conv1", "schedule.epochs=10", "exec=cpu"]
        config = to_config(compose("config", asked))
    return figure(plan_run(config).timeline()), f"{name}: learning rates of each group by epoch"


def _surgery(name):
    figure = Figure(figsize=(7, 2.3 if name == "parallel" else 1.4))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, 14)
    axis.set_ylim(-0.9, 3.7 if name == "parallel" else 1.9)

    def box(x, y, text, colour):
        axis.add_patch(FancyBboxPatch((x, y), 2, 1, boxstyle="round,pad=0.02,rounding_size=0.15", fc=colour, ec="0.35"))
        axis.text(x + 1, y + 0.5, text, ha="center", va="center", fontsize=9)

    def arrow(*points):
        for start, end in zip(points, points[1:], strict=False):
            last = end == points[-1]
            axis.annotate(
                "",
                end,
                start,
                arrowprops={"arrowstyle": "->" if last else "-", "color": "0.35", "shrinkA": 0, "shrinkB": 0},
            )

    low = 0.0
    box(0.2, low, "before", GREY)
    box(11.8, low, "after", GREY)
    if name == "replace":
        box(6, low, "donor", TEAL)
        arrow((2.25, 0.5), (5.95, 0.5))
        arrow((8.05, 0.5), (11.75, 0.5))
        axis.text(7, -0.5, "the layer that was here is gone", ha="center", fontsize=8, color="0.35")
    elif name == "insert":
        box(4, low, "the layer", GREY)
        box(8, low, "donor", TEAL)
        for x in (2.25, 6.05, 10.05):
            arrow((x, 0.5), (x + (1.9 if 3 < x < 10 else 1.7), 0.5))
        axis.text(
            7, -0.5, "surgery.position=after; with a gate, x + gate · donor(x)", ha="center", fontsize=8, color="0.35"
        )
    else:
        box(5, low, "the layer", GREY)
        box(5, 2.2, "donor", TEAL)
        box(8, 2.2, "gate", AMBER)
        axis.text(10.6, 0.5, "+", ha="center", va="center", fontsize=14)
        arrow((2.25, 0.5), (4.95, 0.5))
        arrow((3.4, 0.5), (3.4, 2.7), (4.95, 2.7))
        arrow((7.05, 2.7), (7.95, 2.7))
        arrow((10.05, 2.7), (10.6, 2.7), (10.6, 0.85))
        arrow((7.05, 0.5), (10.35, 0.5))
        arrow((10.85, 0.5), (11.75, 0.5))
    return figure, f"{name}: where the donor stands"


DRAWN = {"strategy": _strategy, "surgery": _surgery}


def _keys():
    from layergraft.cli.help import keys

    text = ""
    for title, every in keys().items():
        text += f"\n## {f'`{title}`' if title else 'Every run'}\n\n| key | default | |\n|---|---|---|\n"
        for key in every:
            meaning = key.meaning.replace("|", "\\|")
            text += f"| `{key.path}` | {f'`{key.default}`' if key.default else ''} | {meaning} |\n"
    return text
