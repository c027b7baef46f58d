"""What a run has cost over all its starts: hours of devices and machines, and their price."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from hero_platform import home
from hero_platform.tracking.base import Tracker
from hero_platform.tracking.price import Prices
from hero_platform.tracking.standing import PRICE, Leg, billed, hours_of
from hero_platform.train.records import starts_of

logger = logging.getLogger(__name__)


def keep_cost(tracker: Tracker, folder: str) -> None:
    """Record what a run has cost up to the end of its newest start; the step of it is the number of starts.

    A start may end at the step where an earlier one did, and more was spent by then. The price is that of all hours, by
    the price table of this moment. A cost that cannot be kept is said in the log: it never stands in the way of the
    run's end.
    """
    try:
        _keep_cost(tracker, folder)
    except Exception as error:
        logger.error("the cost of the run could not be kept: %s", error)


def _keep_cost(tracker: Tracker, folder: str) -> None:
    starts, past = starts_of(folder), tracker.history(("sys/step_s", "cost/"))
    if not starts:  # its workers never came up: nothing was spent on steps
        return
    step_s = past.get("sys/step_s", {})
    known = [start.recorded for start in starts[1:]] + [max(step_s, default=0)]
    ends = [start.step for start in starts[1:]] + [0]  # of a start that came no further than those before it
    legs = [
        Leg(
            begin=start.step,
            end=reached if reached > start.recorded else end,
            devices=start.world * (1 if start.on_gpu else start.threads),
            gpu=start.on_gpu,
            billed=start.billed,
        )
        for start, reached, end in zip(starts, known, ends, strict=True)
    ]
    cost = hours_of(legs, step_s)
    if not any(len(starts) in points for name, points in past.items() if name.startswith(PRICE)):
        cost |= _price_of(cost)
    new = {name: value for name, value in cost.items() if len(starts) not in past.get(name, {})}
    if new:
        tracker.log(len(starts), new)


def _price_of(cost: Mapping[str, float]) -> dict[str, float]:
    """The price of recorded hours, by its metric's name; nothing where no table says it."""
    try:
        prices = Prices.read(home.root())
        return {PRICE + prices.currency: prices.of(billed(cost))} if prices and cost else {}
    except Exception as error:
        logger.warning("the run has no price: %s", error)
        return {}
