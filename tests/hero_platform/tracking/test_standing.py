"""The best value so far and what a run cost, as functions of its record."""

from __future__ import annotations

import math

import pytest

from hero_platform.tracking.standing import Best, Leg, Objective, billed, hours_of


def test_the_best_so_far_is_the_first_of_equal_ones():
    best = Best("val/r1", "max")
    assert best.after(10, {"val/loss": 1.0}) == {} == best.after(20, {"val/r1": math.nan})
    assert best.after(30, {"val/r1": 5.0}) == {"best/val/r1": 5.0, "best/step": 30.0}
    assert best.after(40, {"val/r1": 5.0}) == {"best/val/r1": 5.0, "best/step": 30.0}
    assert best.after(50, {"val/r1": 6.0}) == {"best/val/r1": 6.0, "best/step": 50.0}
    assert best.after(60, {"val/r1": -math.inf})["best/step"] == 50.0


def test_a_restart_goes_on_as_if_nothing_had_happened():
    history = {10: 3.0, 20: 2.0, 30: 1.0}  # the last was measured after the checkpoint of step 20
    best = Best("val/loss", "min")
    best.resume(history, start=20)
    assert best.after(30, {"val/loss": 2.5}) == {"best/val/loss": 2.0, "best/step": 20.0}
    fresh = Best("val/loss", "min")
    fresh.resume(history, start=0)
    assert fresh.after(10, {"val/loss": 3.0})["best/step"] == 10.0


def test_device_hours_count_every_device_and_every_repeated_step():
    speed = {10: 360.0, 20: 720.0}  # seconds a step: a tenth of an hour, then a fifth
    assert hours_of([Leg(0, 20, 1, gpu=False)], speed) == pytest.approx({"cost/cpu_hours": 1 + 2})
    assert hours_of([Leg(0, 15, 4, gpu=True)], speed) == pytest.approx({"cost/gpu_hours": 4 * (1 + 1)})
    moved = [Leg(0, 20, 2, gpu=False), Leg(15, 20, 8, gpu=True)]
    assert hours_of(moved, speed) == pytest.approx({"cost/cpu_hours": 2 * 3, "cost/gpu_hours": 8 * 1})
    assert hours_of([Leg(20, 20, 1, gpu=False)], speed) == {} == hours_of([], speed)


def test_machines_that_say_their_type_are_counted_beside_devices():
    speed = {10: 360.0, 20: 720.0}
    spot = Leg(0, 10, 16, gpu=True, billed={"p4d.24xlarge/spot": 2.0})
    mixed = Leg(10, 20, 12, gpu=True, billed={"p4d.24xlarge/spot": 1.0, "gpu": 4.0})
    alone = Leg(0, 10, 4, gpu=False, billed={"cpu": 4.0})
    hours = hours_of([spot, mixed, alone], speed)
    machines = {"p4d.24xlarge/spot": 1 * 2 + 2 * 1, "gpu": 2 * 4, "cpu": 1 * 4}
    devices = {"cost/gpu_hours": 1 * 16 + 2 * 12, "cost/cpu_hours": 1 * 4}
    assert hours == pytest.approx({**{f"cost/hours/{kind}": value for kind, value in machines.items()}, **devices})
    assert billed(hours) == pytest.approx(machines)
    nowhere = hours_of([alone], speed)
    assert nowhere == pytest.approx({"cost/cpu_hours": 4}), "of devices alone everything is said by their hours"
    assert billed(nowhere) == pytest.approx({"cpu": 4}) and billed({}) == {}


def test_a_metric_says_which_way_is_better():
    assert Objective.parse("val/loss").mode == "min" and Objective.parse("val/r1").mode == "max"
    assert Objective.parse("eval/tvr/val/vr_median_rank:min") == Objective("eval/tvr/val/vr_median_rank", "min")
    with pytest.raises(ValueError, match="--by takes METRIC or METRIC:max"):
        Objective.parse("x:up", "--by")
