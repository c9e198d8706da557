"""Each rule has a data set with exactly that defect (defects.py)."""

import json

from zk0.robot.check import check_dataset


def test_a_healthy_data_set_has_no_finding(healthy) -> None:
    report = check_dataset(healthy, dataset="healthy")
    assert report.findings == ()
    assert (report.episodes, report.frames, report.fps) == (4, 48, 10.0)
    assert report.cameras == ("overhead", "wrist")
    assert report.state_names[5] == "gripper.pos"
    assert report.tasks == ("Pick up the cube.",)
    assert report.robot_type == "so101_follower"


def test_there_are_at_least_twenty_rules_each_with_its_defect(defects) -> None:
    assert len(set().union(*(rules for rules, _ in defects.values()))) >= 40


def test_a_defect_is_found_and_nothing_else(defect, breaker) -> None:
    rules, break_it = defect
    break_it(breaker)
    report = check_dataset(breaker.root, dataset="broken")
    assert {f.rule for f in report.findings} == rules, "\n".join(map(str, report.findings))
    json.loads(report.model_dump_json())
    for finding in report.findings:
        assert finding.where
        assert finding.found != finding.expected


def test_the_quick_check_decodes_no_video(defects, breaker) -> None:
    defects["a_video_with_a_hole"][1](breaker)
    assert check_dataset(breaker.root, dataset="broken", quick=True).findings == ()
    assert {f.rule for f in check_dataset(breaker.root, dataset="broken").findings} == {"undecodable-video"}


def test_a_rename_map_says_what_state_and_cameras_are_called(defects, breaker) -> None:
    defects["state_under_another_name"][1](breaker)
    breaker.json("meta/stats.json", lambda s: s.update(state=s.pop("observation.state")))
    assert {f.rule for f in check_dataset(breaker.root, dataset="x").findings} == {"feature-keys"}
    report = check_dataset(breaker.root, dataset="x", rename_map={"state": "observation.state"})
    assert report.findings == ()
    assert report.state_names[0] == "shoulder_pan.pos"
