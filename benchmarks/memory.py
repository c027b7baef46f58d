"""Memory of a process and of everything under it, from the kernel's own accounts."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]


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


def watch(command: Sequence[str]) -> tuple[float, float, dict[str, Any]]:
    """Run a command to its end, looking five times a second, or less often where a look takes long: large processes.

    Returns:
        Most anonymous memory of one process and most PSS of all together, both in MB, and the JSON in the last line
        that the command printed.
    """
    anonymous = pss = 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            began = time.perf_counter()
            if seen := of_tree(child.pid):
                anonymous = max(anonymous, *(process.anonymous for process in seen))
                pss = max(pss, sum(process.pss for process in seen))
            time.sleep(max(0.2, 9 * (time.perf_counter() - began)))  # a tenth of a core at most
        said = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return anonymous, pss, json.loads(said.splitlines()[-1])
