"""What loading a layer did, in sentences: the first that a report says. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from layergraft.report.loading import Loading, Recovery, Room, SiteEffect
from layergraft.report.narrative import describe_bound
from layergraft.stats import Difference

MANY = 4  # sites of which each is named
LITTLE_ROOM = 1.0  # points of validation accuracy
IN_WORDS = {"early": "early", "middle": "in the middle", "late": "late"}
POINTS = "points of test accuracy"


@dataclass(frozen=True)
class Headline:
    """The answer for hosts whose weights have one origin."""

    answer: str
    """What loading a layer did to test accuracy."""
    more: list[str]
    """Shock and recovery, the best arm of each site, how good donors and hosts were."""
    warnings: list[str]


def headline(found: Loading) -> Headline:
    """The answer in sentences."""
    more = [*_shock(found), *_recovered(found), *_best(found), *_donors(found), *_room(found)]
    return Headline(_answer(found), more, list(_warnings(found)))


def interval(found: Difference, sign: int = 1) -> str:
    """`95% CI 12.5 to 19.9, n = 5`, of the difference in accuracy or, with sign -1, of what it costs; whether it is
    significant; and where the interval includes 0 the one-sided 95% bound on the loss."""
    if math.isinf(found.error):
        return "" if found.n == 1 else f"the same in all {found.n} seeds, so no interval"
    low, high = sorted(sign * found.mean + side * found.half_width for side in (-1, 1))
    told = ["not significant after Holm correction"] if found.p < 0.05 else ["not significant", *describe_bound(found)]
    doubt = "" if found.significant else f"; {', '.join(told)}"
    return f"95% CI {found.in_digits(low)} to {found.in_digits(high)}, n = {found.n}{doubt}"


def _answer(found: Loading) -> str:
    known = [site for site in found.sites if site.difference is not None]
    named = [(_place(site.site), site.difference) for site in known]
    if len(known) > MANY:
        worst, best = (choose(known, key=_mean) for choose in (min, max))
        named = [(f"on average over {len(known)} sites", found.mean), (f"at the worst site, {worst.site}", worst.difference),
                 (f"at the best site, {best.site}", best.difference)]  # fmt: skip
    effect = _effects([(where, d) for where, d in named if d is not None])
    resnets = "ResNet" if all("resn" in host for host in found.hosts) else "network"
    host = f"a {resnets} {found.host_from}" if found.is_trained else f"an untrained {resnets}"
    one_seed = "; one seed, so no interval" if all(d is None or d.n == 1 for _, d in named) else ""
    return f"Loading {found.layer} into {host} {effect}, compared with the same host without a graft: {_mean_over(found)}{one_seed}."


def _mean(site: SiteEffect) -> float:
    return site.difference.mean if site.difference else math.nan


def _place(site: str) -> str:
    return IN_WORDS.get(site, f"at {site}")


def _mean_over(found: Loading) -> str:
    """`mean over 4 strategies and 2 hosts`; what there is one of has its name."""
    by_strategy, by_host = found.num_arms == len(found.strategies), found.num_settings == len(found.hosts)
    arms = f"{found.num_arms} {'strategies' if by_strategy else 'arms'}"
    settings = f"{found.num_settings} {'hosts' if by_host else 'settings'}"
    several = [text for text, number in ((arms, found.num_arms), (settings, found.num_settings)) if number > 1]
    single = [f"in {found.hosts[0]}"] * (found.num_settings == 1) + [f"with strategy {found.strategies[0]}"] * (
        found.num_arms == 1
    )
    return " ".join([*([f"mean over {listed(several)}"] if several else []), *single])


def _verb(d: Difference) -> str:
    if d.mean == 0 or math.isfinite(d.error) and d.p >= 0.05:
        return "changes"
    return "costs" if d.mean < 0 else "gains"


def _effects(named: Sequence[tuple[str, Difference]]) -> str:
    """`costs 16.2 points of test accuracy early (95% CI 12.5 to 19.9, n = 5) and 2.4 late (...)`."""
    told: list[str] = []
    for verb, group in itertools.groupby(named, key=lambda pair: _verb(pair[1])):
        sign = -1 if verb == "costs" else 1
        parts = [
            (d.in_digits(sign * d.mean, "+" if verb == "changes" else ""), f"{where}{_bracketed(interval(d, sign))}")
            for where, d in group
        ]
        what = "it" if told else "test accuracy"
        unit = "points" if told or verb == "changes" else POINTS
        (value, where), *others = parts
        first = f"{f'changes {what} by' if verb == 'changes' else verb} {value} {unit} {where}"
        told.append(listed([first, *(" ".join(part) for part in others)]))
    return ", and ".join(told)


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def listed(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _shock(found: Loading) -> list[str]:
    known = [(_place(site.site), d) for site in found.sites if (d := site.shock.get("shock/acc")) is not None]
    if not known:
        return []
    if len(known) > MANY:
        extremes = (choose(known, key=lambda pair: pair[1].mean) for choose in (min, max))
        known = [
            (f"{where} (the {which} site)", d) for which, (where, d) in zip(("worst", "best"), extremes, strict=True)
        ]
    parts = [f"{d.in_digits(d.mean, '+')} {where}{_bracketed(interval(d))}" for where, d in known]
    parts[0] = parts[0].replace(" ", " points ", 1)
    return [f"Before the first step, the graft had changed the host's validation accuracy by {listed(parts)}."]


def _recovered(found: Loading) -> list[str]:
    known = [(_place(site.site), r) for site in found.sites if (r := site.recovery) is not None]
    if not known:
        return []
    if len(known) > MANY and found.recovery:
        known = [("", found.recovery)]
    parts = [f"{r.recovered} of {r.runs} runs {where}{' ' * bool(where)}({median(r)})" for where, r in known]
    return [f"The intact host's validation loss was reached again by {listed(parts)}."]


def median(found: Recovery) -> str:
    """How long the median run took."""
    return "the median run never did" if math.isinf(found.median) else f"median {found.median:.0f} steps"


def _best(found: Loading) -> list[str]:
    known = [site for site in found.sites if site.best is not None]
    if not known or len(known) > MANY:
        return []
    by_strategy = found.num_arms == len(found.strategies)

    def tell(site: SiteEffect) -> str:
        name = str(site.best).split(", ")[0] if by_strategy else site.best
        return f"{name} {_place(site.site)}{_bracketed(_gain(site.best_gain))}"

    what = "strategy" if by_strategy else "arm"
    return [
        f"The best {what} by validation accuracy, and its difference to no graft in {POINTS}: {listed(map(tell, known))}."
    ]


def _gain(d: Difference | None) -> str:
    if d is None or math.isinf(d.error):
        return "" if d is None else d.in_digits(d.mean, "+")
    after = " after Holm correction" if d.p < 0.05 else ""
    return f"{d}{'' if d.significant else f', not significant{after}'}"


def _donors(found: Loading) -> list[str]:
    mean, lowest = found.donor_acc
    told = []
    if not math.isnan(mean):
        told.append(f"On their own task, donors had {mean:.1f}% test accuracy (mean of all runs; lowest {lowest:.1f}%)")
    if not math.isnan(found.host_acc):
        told.append(f"hosts had {found.host_acc:.1f}% on the data they were pretrained on")
    return [f"{'; '.join(told)[:1].upper()}{'; '.join(told)[1:]}."] if told else []


def _room(found: Loading) -> list[str]:
    if not found.room:
        return []
    named = [
        f"{room.host} from {room.before:.1f}% to {room.after:.1f}% (test accuracy after it: {room.test:.1f}%)"
        for room in found.room
    ]
    return [
        f"{'Tuning' if found.is_trained else 'Training'} without a graft took the validation accuracy of {listed(named)}."
    ]


def _warnings(found: Loading) -> Iterable[str]:
    little: list[Room] = [room for room in found.room if room.after - room.before < LITTLE_ROOM]
    if little:
        named = listed(f"{room.host} {room.after - room.before:+.1f}" for room in little)
        yield (f"tuning without a graft improved validation accuracy by less than {LITTLE_ROOM:.0f} point ({named}): these data leave "
               "little room for a donor to help")  # fmt: skip
    if found.is_trained and found.has_new_head:
        yield "the host's head is new, as its classes are others, so shock and recovery are not reported"
    if found.is_trained and found.shares_host:
        yield ("all seeds start from the same trained host (one for each architecture), so the intervals cover the order of the data, "
               "the donors and the few-shot samples for this host, and say nothing about other hosts")  # fmt: skip
