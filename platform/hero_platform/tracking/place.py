"""Where a run's processes are, as their machines say it: no cloud is asked, only the environment.

The start commands of `cluster.yaml` set `HERO_INSTANCE_TYPE`, `HERO_MARKET` and `HERO_REGION`, which Ray's processes
inherit. Owned machines may be given a type as well, so that they have a price.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

VARIABLES = {"instance_type": "HERO_INSTANCE_TYPE", "market": "HERO_MARKET", "region": "HERO_REGION"}
TAGS = {"instance_type": "hero.instance_types", "market": "hero.market", "region": "hero.region"}
ON_DEMAND = "on-demand"  # what a machine costs that does not say how it was bought
_CHARACTERS = 64
_OTHERS = re.compile(r"[^A-Za-z0-9_.\-]")  # what neither names of metrics nor lists in tags may hold


@dataclass(frozen=True)
class Place:
    """A machine that works on a run; text is empty where the machine does not say it."""

    host: str
    node: str = ""  # its id in a Ray cluster
    instance_type: str = ""
    market: str = ""  # spot, on-demand
    region: str = ""
    ranks: int = 1  # of the run on this machine
    share: float = 1.0  # the part of the machine that is charged to the run

    @property
    def billed_as(self) -> str:
        """What an hour of it is listed under in a price table: `<type>/<market>`; empty where it has no type."""
        return f"{self.instance_type}/{self.market or ON_DEMAND}" if self.instance_type else ""


def here(node: str = "", share: float = 1.0) -> Place:
    """This machine, as one rank on it sees it.

    Args:
        node: its id in a Ray cluster.
        share: the part of it that this rank is charged for.
    """
    facts: dict[str, Any] = said()
    return Place(socket.gethostname(), node, **facts, share=share)


def machines(ranks: Iterable[Place]) -> tuple[Place, ...]:
    """The machines of all ranks, each once."""
    found: dict[tuple[str, str], Place] = {}
    for own in ranks:
        held = found.get((own.host, own.node), replace(own, ranks=0, share=0.0))
        share = min(held.share + own.share, 1.0)
        found[own.host, own.node] = replace(held, ranks=held.ranks + own.ranks, share=share)
    return tuple(found.values())


def said() -> dict[str, str]:
    """What this machine says of itself, of `VARIABLES`; other characters than names hold become `_`."""
    found = {name: os.environ.get(variable, "").strip() for name, variable in VARIABLES.items()}
    return {name: _OTHERS.sub("_", text)[:_CHARACTERS] for name, text in found.items() if text}


def tags_of(places: Iterable[Place]) -> dict[str, str]:
    """Every type, market and region among these machines, as tags to search runs by."""
    facts = [asdict(place) for place in places]
    found = {tag: sorted({str(fact[name]) for fact in facts if fact[name]}) for name, tag in TAGS.items()}
    return {tag: ", ".join(values) for tag, values in found.items() if values}
