"""Statistics are pooled within a group of clients that share joints and units."""

from pathlib import Path

import pytest
from four_arms_session import member
from loguru import logger

from zk0.data.statistics import pool_moments
from zk0.errors import DatasetError
from zk0.evaluation.client_plans import evaluating_clients
from zk0.evaluation.session_setup import SessionSetup
from zk0.evaluation.statistics_groups import find_group, pool_groups
from zk0.records import JointUnits, Member, Moments, PolicyRecipe, Statistics
from zk0.report.tables.group_tables import still_joints_note
from zk0.settings.dataset_settings import ContractSettings
from zk0.settings.loading import load_session

SEVERAL = ContractSettings(units="normalized", other_groups=True)
OLD, NEW = ("main", "degrees"), ("pos", "normalized")


def client(index: int, group: tuple[str, str]) -> Member:
    found = member(index)
    return found.model_copy(
        update={"report": found.report.model_copy(update={"calibration": group[0], "units": group[1]})}
    )


MEMBERS = [client(0, OLD), client(1, NEW), client(2, OLD), client(3, NEW)]


def test_each_group_has_the_statistics_of_its_clients_and_the_contracts_group_is_the_default() -> None:
    groups = pool_groups(SEVERAL, MEMBERS, [MEMBERS[2].report])
    assert [g.name for g in groups] == ["pos-normalized", "main-degrees"]
    assert [g.clients for g in groups] == [
        (MEMBERS[1].client, MEMBERS[3].client), (MEMBERS[0].client, MEMBERS[2].client),
    ]  # fmt: skip
    assert groups[0].statistics == pool_moments([MEMBERS[1].statistics, MEMBERS[3].statistics])
    assert [g.evaluation_sets for g in groups] == [(), (MEMBERS[2].report.dataset,)]
    assert find_group(groups, MEMBERS[2].report) is groups[1]


def test_the_largest_group_is_the_default_where_no_client_fits_the_contract() -> None:
    degrees = SEVERAL.model_copy(update={"units": "radians"})
    members = [client(0, OLD), client(1, NEW), client(2, OLD)]
    assert pool_groups(degrees, members, [])[0].name == "main-degrees"


def test_without_other_groups_there_is_one() -> None:
    (group,) = pool_groups(ContractSettings(), [member(i) for i in range(4)], [])
    assert group.statistics == pool_moments([member(i).statistics for i in range(4)])


def test_a_dataset_without_a_client_of_its_group_is_named() -> None:
    groups = pool_groups(SEVERAL, [client(0, OLD)], [])
    recipe = PolicyRecipe(path="tiny", cameras=("a",), joints=6, seed=1)
    setup = SessionSetup(
        recipe=recipe, members=(MEMBERS[0], MEMBERS[1]), sets=(), statistics=groups[0].statistics, groups=groups
    )
    with pytest.raises(DatasetError, match=rf"{MEMBERS[1].report.dataset}: .*expected those of a group: main-degrees"):
        setup.check_groups()
    assert setup.client_statistics(MEMBERS[0].client) == groups[0].statistics


def still(joint: int, std: float) -> Member:
    """A client whose joint hardly moves."""

    def quiet(moments: Moments) -> Moments:
        stds = tuple(std if at == joint else one for at, one in enumerate(moments.std))
        return moments.model_copy(update={"std": stds, "mean": (0.0,) * len(stds)})

    found = member(0)
    statistics = Statistics(state=quiet(found.statistics.state), action=quiet(found.statistics.action))
    return found.model_copy(update={"statistics": statistics})


@pytest.mark.parametrize(("units", "smallest"), [("degrees", 1.0), ("normalized", 1.0), ("radians", 0.0175)])
@pytest.mark.parametrize("std", [0.0, 1e-9, 0.01])
def test_a_joint_that_hardly_moves_does_not_amplify_small_offsets(
    units: JointUnits, smallest: float, std: float
) -> None:
    (group,) = pool_groups(ContractSettings(units=units), [still(5, std)], [])
    assert group.statistics.state.std[5] == group.statistics.action.std[5] == smallest
    assert group.statistics.state.std[:5] == still(5, std).statistics.state.std[:5]
    session = load_session(Path("deployments/sessions/demo.toml"))
    note = still_joints_note(session, [group])
    assert "training frames: gripper. " in note
    assert f"counts as {smallest:g} ({units})" in note
    assert still_joints_note(session, pool_groups(ContractSettings(), [member(0)], [])) == ""


def test_joints_that_hardly_moved_are_logged_when_statistics_are_pooled() -> None:
    from tasks.preparation import pool_statistics

    session, lines = load_session(Path("deployments/sessions/demo.toml")), list[str]()
    sink = logger.add(lines.append, format="{message}")
    try:
        groups = pool_statistics.fn(session, (still(5, 1e-9),), ())
        assert still_joints_note(session, groups) + "\n" in lines
        lines.clear()
        pool_statistics.fn(session, (member(0),), ())
        assert lines == []
    finally:
        logger.remove(sink)


def test_one_client_evaluates_for_all_that_share_a_dataset() -> None:
    recipe = PolicyRecipe(path="tiny", cameras=("a",), joints=6, seed=1)
    statistics = member(0).statistics
    setup = SessionSetup(recipe=recipe, members=tuple(MEMBERS), sets=(), statistics=statistics)
    names = [one.client for one in MEMBERS]
    each = load_session(Path("deployments/sessions/demo.toml"))
    shared = load_session(Path("deployments/sessions/shared.toml"))
    assert evaluating_clients(each, setup) == names
    assert evaluating_clients(shared, setup) == names[:1]
    assert evaluating_clients(shared, setup.model_copy(update={"normalization": "client"})) == names
