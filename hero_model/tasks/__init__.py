"""The table of tasks: the one place to register one. Add its class to `Task`; everything else follows."""

from __future__ import annotations

from typing import get_args

from hero_model.tasks.captioning import Captioning
from hero_model.tasks.entailment import Entailment
from hero_model.tasks.fom import Fom
from hero_model.tasks.mfm import Mfm
from hero_model.tasks.mlm import Mlm
from hero_model.tasks.moment_retrieval import MomentRetrieval
from hero_model.tasks.video_qa import VideoQa
from hero_model.tasks.video_retrieval import VideoRetrieval
from hero_model.tasks.vsm import Vsm

Task = Mlm | Mfm | Fom | Vsm | MomentRetrieval | VideoRetrieval | VideoQa | Entailment | Captioning

TASKS: dict[str, type[Task]] = {task.kind: task for task in get_args(Task)}

__all__ = [
    "TASKS",
    "Captioning",
    "Entailment",
    "Fom",
    "Mfm",
    "Mlm",
    "MomentRetrieval",
    "Task",
    "VideoQa",
    "VideoRetrieval",
    "Vsm",
]
