"""Overrides as people write them and as Hydra spells them. Imports nothing: Hydra imports the sweeper at every start."""

from __future__ import annotations

import re

CHOICES_BELOW = r"(donor|host\.pretrain)\.(data|optim|schedule)"  # groups of which a choice stands deeper in the config


def to_hydra(override: str) -> str:
    """`donor.data=cifar10` as Hydra spells it: the group `data`, put at `donor.data`."""
    if override.startswith("hydra.sweeper.tune."):
        return f"++{override}"  # a key that is to be tuned is there or not, as a config that was chosen has it
    found = re.match(rf"(\+*){CHOICES_BELOW}=(?=[\w,.-]+$)", override)
    if found is None:
        return override
    plus = "" if found[1] == "++" else found[1]  # which Hydra has for values alone
    chosen = override[found.end() :]
    if found[2] == "host.pretrain":  # null is no choice of a group; none is
        chosen = ",".join("none" if name == "null" else name for name in chosen.split(","))
    return f"{plus}{found[3]}@{found[2]}.{found[3]}={chosen}"


def from_hydra(override: str) -> str:
    """The inverse of `to_hydra`."""
    if override.startswith("++hydra.sweeper.tune."):
        return override[2:]
    return re.sub(rf"^(\+*)\w+@{CHOICES_BELOW}=", r"\1\2.\3=", override)


def key_of(override: str) -> str:
    """`data@donor.data=digits` -> `donor.data`: where in the config an override acts."""
    return override.split("=", 1)[0].lstrip("+~").rpartition("@")[2]


def within(key: str, parent: str) -> bool:
    """Whether `key` is `parent` or a part of it: what was said of a donor is void where a control has another."""
    return key == parent or key.startswith(parent + ".")


def void(key: str, pinned: str) -> bool:
    """Whether what was said of `key` is void where a control has another `pinned`. What was said of a donor is, of another donor; what was
    said of the host, such as its width or its pretraining, holds for another of its networks."""
    return key == pinned if pinned == "host" else within(key, pinned)
