"""What hours of machines cost, by a table that its user edits: `HERO_HOME/prices.json`, or where `HERO_PRICES` points.

`{"currency": "USD", "instances": {"g5.2xlarge": {"on-demand": 1.2, "spot": 0.5}}, "gpu": 1.0, "cpu": 0.05}`
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hero_platform import files

FILE, VARIABLE = "prices.json", "HERO_PRICES"
DEVICES = ("gpu", "cpu")  # prices of a device's hour, for machines that do not say their type
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class Prices:
    """A price table."""

    path: str
    currency: str
    instances: Mapping[str, Mapping[str, float]]  # type -> market -> an hour of a machine
    devices: Mapping[str, float]  # of `DEVICES`

    @classmethod
    def read(cls, root: str) -> Prices | None:
        """The table of an outputs root; None: there is none.

        Raises:
            ValueError: it is damaged or cannot be read, or `HERO_PRICES` points to nothing.
        """
        path = os.environ.get(VARIABLE) or files.join(root, FILE)
        try:
            table = files.read_json(path)
        except FileNotFoundError:
            if os.environ.get(VARIABLE):
                raise ValueError(f"{VARIABLE} is {path}, and there is no such price table") from None
            return None
        except OSError as error:
            raise ValueError(f"the price table {path} cannot be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"the price table {error}; docs/leaderboard.md shows one") from error
        return cls._of(path, table)

    @classmethod
    def _of(cls, path: str, table: Any) -> Prices:
        def refuse(what: str) -> ValueError:
            return ValueError(f"the price table {path} is damaged: {what}; docs/leaderboard.md shows one")

        if not isinstance(table, dict):
            raise refuse("it is no JSON object")
        if unknown := sorted(set(table) - {"currency", "instances", *DEVICES}):
            raise refuse(f"{unknown[0]!r} is none of currency, instances, {', '.join(DEVICES)}")
        currency, instances = table.get("currency"), table.get("instances", {})
        if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
            raise refuse('"currency" is not three capital letters, such as "USD"')
        if not isinstance(instances, dict) or not all(isinstance(rates, dict) for rates in instances.values()):
            raise refuse('"instances" is not an object of {"on-demand": PRICE, "spot": PRICE} by instance type')
        devices = {name: table[name] for name in DEVICES if name in table}
        for owner, rates in (*instances.items(), ("", devices)):
            for name, price in rates.items():
                if type(price) not in (int, float) or not math.isfinite(price) or price < 0:
                    raise refuse(f"the price of {f'{owner} {name}'.strip()} is {price!r}")
        return cls(path, currency, instances, devices)

    def of(self, hours: Mapping[str, float]) -> float:
        """The price of hours of machines, by `<type>/<market>`, and of devices, by `gpu` and `cpu`.

        Raises:
            ValueError: the table does not say all of them.
        """
        return sum(self._an_hour(kind) * count for kind, count in hours.items())

    def _an_hour(self, kind: str) -> float:
        instance, _, market = kind.partition("/")
        rates, name = (self.instances.get(instance, {}), market) if market else (self.devices, kind)
        if name not in rates:
            what = f"{instance} ({market})" if market else f'"{kind}", for machines that do not say their type'
            raise ValueError(f"the price table {self.path} has no price of {what}")
        return rates[name]
