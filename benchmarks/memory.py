"""Memory of a process and of everything under it, from the kernel's own accounts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB."""

    pss: float  # pages in memory, those that several processes map shared out between them
    anonymous: float  # of these, what is no page of a file: the kernel drops file pages when others need memory
    uss: float  # pages of this process alone


def of_tree(root: int) -> list[Memory]:
    """Every living process of a tree (Ray's daemons and workers are among them); empty when the root is gone."""
    found = []
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.Error:
        return []
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        if kilobytes:
            own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"] + kilobytes.get("Private_Hugetlb", 0)
            found.append(Memory(*(1.024e-3 * x for x in (kilobytes["Pss"], kilobytes["Pss_Anon"], own))))
    return found
