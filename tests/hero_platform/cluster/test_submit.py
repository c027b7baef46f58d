"""When a name is submitted again: what counts as the same job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hero_platform import home
from hero_platform.cluster import submit
from hero_platform.cluster.submit import Attempt, Job

JOB = Job("j", "jobs.train", ("pretrain_tv", "--name", "j"))


@pytest.fixture
def last(hero_home: Path) -> Attempt:
    return Attempt("j-a1", "j", 1, JOB.asked(), "u@h", "RUNNING", "", None, 0, None, home=home.root())


def test_a_job_that_runs_or_has_finished_is_not_submitted_twice(last: Attempt):
    taken = submit._taken(last, JOB, again=False)
    assert taken and (taken.how, taken.notes) == ("running", ())
    finished = replace(last, status="SUCCEEDED")
    taken = submit._taken(finished, JOB, again=False)
    assert taken and taken.how == "finished"
    assert submit._taken(finished, JOB, again=True) is None
    assert submit._taken(replace(last, status="FAILED"), JOB, again=False) is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"asked": json.dumps(["jobs.train", "finetune_tvr"])}, "yours are not used: jobs.train finetune_tvr"),
        ({"home": "s3://elsewhere/hero"}, "it writes to s3://elsewhere/hero and not to your HERO_HOME"),
    ],
)
def test_another_job_of_the_name_is_told_apart(last: Attempt, other: dict[str, str], said: str):
    """One that has finished for another HERO_HOME, or with other arguments, is no reason to leave this one out."""
    taken = submit._taken(replace(last, **other), JOB, again=False)
    assert taken and taken.how == "running" and said in taken.notes[0]
    assert submit._taken(replace(last, status="SUCCEEDED", **other), JOB, again=False) is None
