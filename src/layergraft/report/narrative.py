"""What was found, in words. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from layergraft.config.metric_registry import lookup
from layergraft.errors import counted
from layergraft.report.findings import IN_ALL, TAKEN_APART, Findings
from layergraft.stats import Difference

MANY = 6  # cells of which each is told
IN_WORDS = {"test/acc": "points of test accuracy", "val/aulc": "points of mean validation accuracy over training"}


def describe_difference(found: Difference | None, metric: str = "test/acc") -> str:
    """`+1.2 ± 0.8`. Where it is not significant, the most that it costs (a one-sided 95% bound; for a metric of which less or
    more is better) and the minimum detectable difference; with a margin, whether it is equivalent within it."""
    if found is None:
        return "no seed has all of its runs"
    if found.n == 1:
        return f"{found}: one seed, so no interval"
    if math.isinf(found.error):
        return f"{found}: the same in all {found.n} seeds, so no interval"
    bound = describe_bound(found, metric)
    if found.equivalent:
        verdict = f"{'significant, and ' * found.significant}equivalent within ±{found.margin:g}"
        return f"{found}, {verdict} ({'; '.join([f'n = {found.n}', *bound])})"
    if found.significant:
        return f"{found}"
    # The interval is of this difference alone: it may exclude 0 where the correction does not.
    after = " after Holm correction" if found.p < 0.05 else ""
    doubt = (
        f"not determined: neither significant{after} nor equivalent within ±{found.margin:g}" if found.margin else ""
    )
    seen = f"minimum detectable difference {found.in_digits(found.detectable)} at 80% power"
    return f"{found}, {doubt or f'not significant{after}'} ({'; '.join([f'n = {found.n}', *bound, seen])})"


def describe_bound(found: Difference, metric: str = "test/acc") -> list[str]:
    """`costs at most 1.2`: the one-sided 95% bound on the loss, rounded up. Empty without an interval, and where neither more
    nor less of the metric is better."""
    known = lookup(metric)
    if known is None or not known.direction or math.isinf(found.error):
        return []
    return [f"costs at most {found.in_digits(found.most(-1 if known.direction == 'higher' else 1), up=True)}"]


def describe_metric(metric: str, units: Mapping[str, str]) -> str:
    """What a difference in `metric` is in, and which way is better where that is down: `test/ece, points, lower is better`.
    `units` has the unit of a metric whose package is not installed."""
    if metric in IN_WORDS:
        return IN_WORDS[metric]
    known = lookup(metric)
    unit = known.unit_of_difference if known else units[metric]
    return ", ".join([metric, unit, *(["lower is better"] if known and known.direction == "lower" else [])])


def _doubt(found: Difference) -> str:
    if found.significant:
        return ""
    after = " after Holm correction" if found.p < 0.05 else ""
    return ", ".join(["", f"not significant{after}", *describe_bound(found)])


def _first(names: list[str], number: int) -> str:
    return "; ".join([*names[:number], *(["..."] if len(names) > number else [])])


def sentences(found: Findings) -> list[str]:
    """The answer, a sentence for each question."""
    return [*_contrasts(found), *_places(found), *_across(found), *_ladder(found), *_shares(found), *_similarity(found)]


def _contrasts(found: Findings) -> Iterator[str]:
    asked = [c for c in found.contrasts if c.difference is not None]
    sure = [f"{c.name} {c.difference}" for c in asked if c.difference is not None and c.difference.significant]
    if asked:
        number = f"{len(sure)} {'is' if len(sure) == 1 else 'are'}" if sure else "none is"
        yield f"Of {counted(len(asked), 'contrast')}, {number} significant after Holm correction{': ' * bool(sure)}{'; '.join(sure)}."
    within = [(c, d) for c in asked if (d := c.difference) is not None and d.margin is not None]
    if within:
        verdicts = {
            "equivalent within it": [(c, d) for c, d in within if d.equivalent],
            "not equivalent but significantly different": [
                (c, d) for c, d in within if d.significant and not d.equivalent
            ],
            "not determined": [(c, d) for c, d in within if not d.significant and not d.equivalent],
        }
        told = [
            f"{len(those)} {verdict} ({_first([', '.join([f'{c.name} ±{d.margin:g}', *describe_bound(d, c.metric)]) for c, d in those], MANY)})"
            for verdict, those in verdicts.items()
            if those
        ]
        yield f"Of {counted(len(within), 'contrast')} with a margin: {', '.join(told)}."


def _places(found: Findings) -> Iterator[str]:
    whole = [answer for answer in found.answers if answer.arm]
    if len(whole) <= MANY:
        for answer in whole:
            told = [f"{d} over {control}{_doubt(d)}" for control, d in answer.gains.items() if d is not None]
            doubt = "" if answer.agreed else " (picked by less than half of the seeds)"
            yield f"{answer.setting}, {answer.site}: best by validation is {answer.arm}{doubt}: {'; '.join(told) or 'compared with nothing'}."
        return
    for control in dict.fromkeys(name for answer in whole for name in answer.gains):
        there = [(answer, gain) for answer in whole if (gain := answer.gains[control]) is not None]
        told = []
        for side, sign in (("better", 1), ("worse", -1)):
            sure = [(a, d) for a, d in there if d.significant and sign * d.mean > 0]
            names = [f"{a.setting}, {a.site}: {a.arm if a.agreed else 'no one arm'} {d}" for a, d in sure]
            if names:
                told.append(f"significantly {side} in {len(names)} ({_first(names, MANY)})")
        if there:
            said = f"is {' and '.join(told)}" if told else "is significantly different in none"
            yield f"Compared with {control}, the best arm {said} of {len(there)} cells (setting × site)."


def _across(found: Findings) -> Iterator[str]:
    rows = [row for row in found.across.to_dict("records") if row["n"]]
    if len(rows) > 1 and max(row["cells"] for row in rows) > 1:
        told = [f"{row['arm']} {row['iqm']}" for row in rows if row["iqm"].significant]
        unsure = [", ".join([row["arm"], *describe_bound(row["iqm"])]) for row in rows if not row["iqm"].significant]
        if unsure:
            told.append(f"not significantly different are {_first(unsure, 8)}")
        yield f"Interquartile mean over all cells, compared with {found.baseline}: {'; '.join(told)}."


def _ladder(found: Findings) -> Iterator[str]:
    for strategy, steps in found.steps.groupby("strategy", sort=False) if len(found.steps) else ():
        of = dict(zip(steps.step, steps.difference, strict=True))
        parts = {part: d for part in TAKEN_APART for step, d in of.items() if step.startswith(part)}
        if IN_ALL not in of or len(parts) < len(TAKEN_APART):
            continue
        if math.isclose(sum(d.mean for d in parts.values()), of[IN_ALL].mean, abs_tol=1e-6):  # all of the same cells
            told = ", ".join(f"{part} {d.mean:+.1f}{' (significant)' * d.significant}" for part, d in parts.items())
            yield f"With {strategy}, the trained layer gains {of[IN_ALL]} over a random one{_doubt(of[IN_ALL])}; of it {told}."


def _shares(found: Findings) -> Iterator[str]:
    if found.shares:
        sure = [s for s in found.shares.terms if s.factors and s.low > 0 and s.raw >= 0.005]
        told = [f"{' × '.join(s.factors)} {100 * s.raw:.0f}% ({100 * s.low:.0f} to {100 * s.high:.0f})" for s in sure]
        yield f"Of the variance of test accuracy, {'a share is distinguishable from zero for ' + ', '.join(told) if told else 'no factor explains a share distinguishable from zero'}."


def _similarity(found: Findings) -> Iterator[str]:
    if len(found.similar):
        known = list(zip(found.similar.measure, found.similar.association, strict=True))
        told = [f"{measure} ({a.rho:+.2f})" for measure, a in known if a.significant]
        none = "no measure of similarity correlates significantly with the gain"
        if not any(a.decidable for _, a in known):
            smallest = min(a.smallest_corrected_p for _, a in known)
            none = f"these sources cannot show whether similarity predicts the gain: p after Holm correction would be {smallest:.2g} at best"
        said = f"the gain correlates with {', '.join(told)}" if told else none
        yield f"Over {counted(max(a.n for _, a in known), 'source')}, {said}."
