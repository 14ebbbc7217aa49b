"""The report's figures, with Altair (Vega-Lite): one definition each for the page, the PNG and the SVG.

Rows carry the axes of their runs as `filter_0`, `filter_1`, ...; a parameter so named hides what a filter leaves out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from layergraft.report.table import NONE
from layergraft.stats import Difference
from layergraft.store.files import write_atomic

alt.data_transformers.disable_max_rows()

ALL = "all"
PANELS = 24  # at most; a sweep of more settings is read in its table
FEW_SITES = 10  # whose numbers a heat map has room for
ROW = 26
HEADER = alt.Header(labelFontSize=12, labelFontWeight="bold", labelLimit=600)


def _filtered(rows: pd.DataFrame, axes: Sequence[str], panel: str | None = None) -> pd.DataFrame:
    """Those `rows` that have one of the first PANELS values of `panel`, with each of `axes`, or NONE, to filter by."""
    if panel is not None:
        rows = rows[rows[panel].isin(rows[panel].unique()[:PANELS])]
    found = rows.reindex(columns=list(axes)).astype(object)
    found = found.where(found.notna(), NONE).astype(str)
    return rows.assign(**{f"filter_{i}": found[name] for i, name in enumerate(axes)})


def _finish(chart: Any, axes: Sequence[str], exact: Sequence[str] = ()) -> Any:
    """`exact`: axes of which rows with the level ALL stand for all of it."""
    for i, axis in enumerate(axes):
        name = f"filter_{i}"
        everything = "" if axis in exact else f"{name} == '{ALL}' || "
        chart = chart.transform_filter(f"{everything}datum.{name} == {name} || datum.{name} == '{NONE}'")
    return chart


def _with_params(chart: Any, axes: Sequence[str]) -> alt.TopLevelMixin:
    whole: alt.TopLevelMixin = chart.add_params(*[alt.param(name=f"filter_{i}", value=ALL) for i in range(len(axes))])
    return whole


def _panels(
    panel: Any, rows: pd.DataFrame, axes: Sequence[str], columns: int, by: str, exact: Sequence[str] = (), **shown: Any
) -> alt.TopLevelMixin:
    """A panel for each value of `by`, in the order of `rows`; `shown` is of their headers."""
    facet = alt.Facet(f"{by}:N", title=None, sort=list(rows[by].unique()), **shown)
    return _with_params(_finish(panel.facet(facet=facet, columns=columns), axes, exact), axes)


def estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with their `difference` taken apart: mean, low, high, text, significant, n, p, detectable."""
    return rows.drop(columns="difference").join(pd.DataFrame([_estimate(d) for d in rows.difference], rows.index))


def _estimate(d: Difference) -> dict[str, Any]:
    known = math.isfinite(d.half_width)
    low, high = (d.mean - d.half_width, d.mean + d.half_width) if known else (None, None)
    return {"mean": d.mean, "low": low, "high": high, "text": str(d), "significant": d.significant, "n": d.n, "p": d.p,
            "detectable": d.detectable if math.isfinite(d.detectable) else None}  # fmt: skip


TOOLTIP = [alt.Tooltip("text:N", title="difference"), alt.Tooltip("n:Q", title="seeds"), alt.Tooltip("p:Q", format=".3f"),
           alt.Tooltip("detectable:Q", format=".2f", title="minimum detectable")]  # fmt: skip


def _by_arm(arms: Sequence[str], **shown: Any) -> alt.Color:
    """A colour an arm, the same in all figures and whatever the filters leave."""
    scale = alt.Scale(domain=list(arms), scheme="tableau10" if len(arms) <= 10 else "tableau20")
    legend = alt.Legend(orient="bottom", columns=3, labelLimit=300, **shown)
    return alt.Color("arm:N", sort=None, title=None, scale=scale, legend=legend)


def heat_map(cells: pd.DataFrame, axes: Sequence[str], unit: str) -> alt.TopLevelMixin:
    """A panel a setting: arms x sites, the mean paired difference by colour, with its interval as text; pale where that
    includes 0."""
    rows = _filtered(estimates(cells), axes, "setting")
    limit = max(float(rows["mean"].abs().max()), 0.1)
    sites, arms = list(rows.site.unique()), list(rows.arm.unique())
    few = len(sites) <= FEW_SITES
    names = alt.Axis(labelAngle=0, labelLimit=84) if few else alt.Axis(labelAngle=-60)
    base = alt.Chart().encode(
        x=alt.X("site:N", sort=sites, title="site", axis=names),
        y=alt.Y("arm:N", sort=arms, title=None, axis=alt.Axis(labelLimit=260)),
        tooltip=["setting:N", "site:N", "arm:N", *TOOLTIP],
    )
    pale = alt.condition("datum.significant", alt.value(1.0), alt.value(0.18))
    dark = alt.condition(
        f"datum.significant && abs(datum.mean) > {0.65 * limit}", alt.value("white"), alt.value("black")
    )
    scale = alt.Scale(scheme="redblue", domain=[-limit, limit])
    legend = alt.Legend(orient="bottom", gradientLength=240, titleLimit=400)
    color = alt.Color("mean:Q", title=unit, scale=scale, legend=legend)
    tiles = base.mark_rect(stroke="white").encode(color=color, opacity=pale)
    numbers = base.mark_text(fontSize=11).encode(text="text:N", color=dark)
    layered = alt.layer(tiles, *([numbers] if few else []), data=rows)
    layered = layered.properties(width=max(150, (92 if few else 26) * len(sites)), height=ROW * len(arms))
    return _panels(layered, rows, axes, 2 if len(sites) <= 4 else 1, "setting", header=HEADER)


def forest(
    rows: pd.DataFrame, axes: Sequence[str], unit: str | None, y: str, color: str | None = None, panel: str = "setting"
) -> alt.TopLevelMixin:
    """Means with their intervals, a line each, against zero. Without a unit each panel has one of its own, and lines."""
    rows = _filtered(estimates(rows), axes, panel)
    shared: dict[str, Any] = {}
    if color is not None:
        legend = alt.Legend(orient="bottom", labelLimit=300, title=None)
        colors = alt.Color(f"{color}:N", legend=legend, sort=None)
        shared = {"color": colors, "yOffset": alt.YOffset(f"{color}:N", sort=None)}
    base = alt.Chart().encode(
        y=alt.Y(f"{y}:N", sort=list(rows[y].unique()), title=None, axis=alt.Axis(labelLimit=420)),
        tooltip=[f"{y}:N", *([f"{color}:N"] if color else []), *TOOLTIP],
        **shared,
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=unit), x2="high:Q")
    points = base.mark_point(filled=True, size=55, opacity=1).encode(x=alt.X("mean:Q", title=unit))
    zero = alt.Chart().mark_rule(color="#888", strokeDash=[4, 3]).encode(x=alt.datum(0))
    sized = {"width": 360, "height": alt.Step(ROW if color is None else 12)}  # a line
    if unit is not None:
        layered = alt.layer(zero, bars, points, data=rows).properties(**sized)
        return _panels(layered, rows, axes, 2, panel, header=HEADER)
    parts = [alt.layer(zero, bars, points, data=there).properties(**sized, title=str(name))
             for name, there in rows.groupby(panel, sort=False)]  # fmt: skip
    return _with_params(alt.vconcat(*[_finish(part, axes) for part in parts]), axes)


def learning_curves(rows: pd.DataFrame, axes: Sequence[str], arms: Sequence[str]) -> alt.TopLevelMixin:
    """A panel a setting: validation accuracy by epoch, one line an arm, mean over sites and seeds, with its interval."""
    panel, rows = _curves(rows, axes, arms, "setting")
    return _panels(panel.properties(width=360, height=230), rows, axes, 2, "setting", exact=("site",), header=HEADER)


def recovery_curves(rows: pd.DataFrame, axes: Sequence[str], arms: Sequence[str]) -> alt.TopLevelMixin:
    """Panels by site, each with a scale of its own: validation accuracy from before the first step on, one line an arm, mean over
    settings and seeds, with its interval; dashed: the intact host before the first step."""
    panel, rows = _curves(rows, axes, arms, "panel")
    if "intact" in rows:
        panel += alt.Chart().mark_rule(color="#333", strokeDash=[5, 4]).encode(y="mean(intact):Q")
    panels: Any = _panels(panel.properties(width=270, height=220), rows, axes, 3, "panel", header=HEADER)
    whole: alt.TopLevelMixin = panels.resolve_scale(y="independent")
    return whole


def _curves(rows: pd.DataFrame, axes: Sequence[str], arms: Sequence[str], panel: str) -> tuple[Any, pd.DataFrame]:
    """The lines of a panel, and the rows that are in panels."""
    rows = _filtered(rows.assign(low=rows.low.clip(lower=0), high=rows.high.clip(upper=100)), axes, panel)
    color = _by_arm(arms, symbolOpacity=1, symbolType="stroke")
    base = alt.Chart().encode(x=alt.X("epoch:Q", title="epochs trained"), color=color)
    low = alt.Y("low:Q", title="validation accuracy, %", scale=alt.Scale(zero=False))
    tooltip = ["arm:N", f"{panel}:N", "epoch:Q", alt.Tooltip("mean:Q", format=".1f"), "n:Q"]
    band = base.mark_area(opacity=0.15).encode(y=low, y2="high:Q")
    line = base.mark_line(opacity=1).encode(y="mean:Q", tooltip=tooltip)
    return alt.layer(band, line, data=rows), rows


def tuning_curves(rows: pd.DataFrame, axes: Sequence[str], arms: Sequence[str]) -> alt.TopLevelMixin:
    """A panel a tuned key, setting and site: validation accuracy over the values that were tried, a line an arm; filled: the value
    that the arm takes."""
    rows = _filtered(rows, axes, "cell")
    numbers = pd.to_numeric(rows.value, errors="coerce")
    is_number = bool(numbers.notna().all()) and not any(isinstance(value, bool) for value in rows.value)
    log = is_number and bool(numbers.min() > 0) and numbers.max() >= 8 * numbers.min()
    scale = alt.Scale(type="log" if log else "linear", zero=False)
    x = alt.X("value:Q", scale=scale, title=None) if is_number else alt.X("value:O", title=None)
    base = alt.Chart().encode(
        x=x, y=alt.Y("acc:Q", title="validation accuracy, %", scale=alt.Scale(zero=False)), color=_by_arm(arms),
        tooltip=["arm:N", "value:N", alt.Tooltip("acc:Q", format=".1f"), alt.Tooltip("num_seeds:Q", title="seeds")],
    )  # fmt: skip
    taken = alt.condition("datum.takes", alt.value(1.0), alt.value(0.0))
    layered = alt.layer(
        base.mark_line(opacity=0.8), base.mark_point(size=60, filled=True).encode(fillOpacity=taken), data=rows
    )
    panels: Any = _panels(layered.properties(width=270, height=200), rows, axes, 3, "cell", header=HEADER)
    whole: alt.TopLevelMixin = panels.resolve_scale(y="independent")
    return whole


def scatter(
    rows: pd.DataFrame, axes: Sequence[str], arms: Sequence[str], x: str, unit: str, panel: str | None = None
) -> alt.TopLevelMixin:
    """A point a run: `gain` over `x`, by arm; a click opens the run's record."""
    rows = _filtered(rows.rename(columns={x: "value"}), axes)
    points = alt.Chart(rows).mark_point(filled=True, opacity=0.6, size=45).encode(
        x=alt.X("value:Q", title=None if panel else x, scale=alt.Scale(zero=False)),
        y=alt.Y("gain:Q", title=unit),
        color=_by_arm(arms),
        href="record:N",
        tooltip=["key:N", alt.Tooltip("value:Q", format=".3g", title=x), alt.Tooltip("gain:Q", format="+.2f")],
    )  # fmt: skip
    if panel is None:
        return _with_params(_finish(points.properties(width=460, height=260), axes), axes)
    panels: Any = _panels(points.properties(width=250, height=190), rows, axes, 3, panel)
    whole: alt.TopLevelMixin = panels.resolve_scale(x="independent")
    return whole


def share_bars(terms: pd.DataFrame) -> alt.TopLevelMixin:
    """The share of each term in the sum of squares; a line: the interval of its share beyond the seeds' noise."""
    base = alt.Chart(terms).encode(y=alt.Y("term:N", sort=None, title=None, axis=alt.Axis(labelLimit=420)))
    bars = base.mark_bar(color="#7aa6d8").encode(
        x=alt.X("raw:Q", title="share of variance, %"),
        tooltip=["term:N", alt.Tooltip("raw:Q", format=".1f"), "interval:N"],
    )
    rules = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    return alt.layer(bars, rules).properties(width=460, height=22 * len(terms))


def save(chart: Any, folder: Path, name: str) -> dict[str, Any]:
    """Write `folder`/NAME.png and NAME.svg; the specification, for the page."""
    import vl_convert

    spec: dict[str, Any] = chart.configure_view(stroke="#ddd").configure(font="sans-serif").to_dict()
    svg = vl_convert.vegalite_to_svg(spec)
    write_atomic(folder / f"{name}.svg", svg)
    write_atomic(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))
    return spec


def in_page(specs: Mapping[str, Any]) -> str:
    """Specifications as JSON that may stand inside a script element."""
    return json.dumps(specs).replace("<", "\\u003c")


@lru_cache(maxsize=1)
def script() -> str:
    """Vega, Vega-Lite and vega-embed, to stand in a page that needs no network; it sets `window.vegaEmbed`."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
