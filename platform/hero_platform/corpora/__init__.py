"""The table of corpora: the one place to register one."""

from __future__ import annotations

from hero_platform.corpora.base import Corpus
from hero_platform.corpora.didemo import DIDEMO
from hero_platform.corpora.how2qa import HOW2QA
from hero_platform.corpora.how2r import HOW2R
from hero_platform.corpora.msrvtt import MSRVTT
from hero_platform.corpora.tvc import TVC
from hero_platform.corpora.tvqa import TVQA
from hero_platform.corpora.tvr import TVR
from hero_platform.corpora.violin import VIOLIN

CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in (TVR, HOW2R, DIDEMO, MSRVTT, TVQA, HOW2QA, VIOLIN, TVC)}

__all__ = ["CORPORA", "Corpus"]
