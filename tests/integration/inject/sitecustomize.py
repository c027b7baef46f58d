"""Python imports this at start where this folder is on its path: the faults of `HERO_FAULTS` are armed, if any."""

import os

if os.environ.get("HERO_FAULTS"):
    import hero_faults

    hero_faults.arm_all(os.environ["HERO_FAULTS"])
