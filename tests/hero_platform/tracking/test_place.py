"""What a machine says of where it is, and how runs are tagged with it."""

from __future__ import annotations

import socket

from hero_platform.tracking import place
from hero_platform.tracking.place import Place, tags_of
from hero_platform.tracking.system import hardware


def test_a_machine_says_only_what_its_environment_says(monkeypatch):
    assert place.said() == {} and place.here().billed_as == ""
    assert not {"instance_type", "market", "region"} & set(hardware())
    monkeypatch.setenv("HERO_INSTANCE_TYPE", " g5.2xlarge ")
    monkeypatch.setenv("HERO_MARKET", "")
    assert place.here("n1", 0.5) == Place(socket.gethostname(), "n1", "g5.2xlarge", share=0.5)
    assert place.here().billed_as == "g5.2xlarge/on-demand", "who does not say how it was bought"
    monkeypatch.setenv("HERO_MARKET", "spot")
    monkeypatch.setenv("HERO_REGION", "us-east-1")
    assert place.here().billed_as == "g5.2xlarge/spot"
    assert hardware().items() >= {"instance_type": "g5.2xlarge", "market": "spot", "region": "us-east-1"}.items()


def test_what_no_name_may_hold_is_replaced(monkeypatch):
    monkeypatch.setenv("HERO_INSTANCE_TYPE", "a/b, c\n" + "x" * 99)
    assert place.said()["instance_type"] == ("a_b__c_" + "x" * 99)[:64]


def test_tags_name_everything_once():
    nodes = [Place("a", "1", "g5.2xlarge", "spot", "us-east-1"), Place("b", "2", "g5.2xlarge", "on-demand"), Place("c")]
    expected = {"hero.instance_types": "g5.2xlarge", "hero.market": "on-demand, spot", "hero.region": "us-east-1"}
    assert tags_of(nodes) == expected and tags_of([Place("c")]) == {} == tags_of([])


def test_ranks_of_one_machine_are_one_machine():
    ranks = [Place("a", "1"), Place("a", "2", "g5.2xlarge"), Place("a", "1"), Place("b", "3", share=0.25)]
    whole = [Place("a", "1", ranks=2), Place("a", "2", "g5.2xlarge"), Place("b", "3", share=0.25)]
    assert place.machines(ranks) == tuple(whole), "a rank more does not make a machine cost more"
    parts = [Place("b", "3", share=0.25)] * 3
    assert place.machines(parts) == (Place("b", "3", ranks=3, share=0.75),) and place.machines([]) == ()
