"""The tables of a session in Prefect's UI."""

from round_histories import finished_round

from tasks.reporting import _losses


def test_a_row_of_losses_has_each_client_or_mean_and_extremes() -> None:
    record = finished_round(1, 0.5, None, {"a": 1.0, "b": 2.0, "c": 6.0})
    each, many = _losses(record, 3), _losses(record, 2)
    assert {name: each[name] for name in "abc"} == {"a": 1.0, "b": 2.0, "c": 6.0}
    assert (many["mean of the clients"], many["lowest"], many["highest"]) == (3.0, 1.0, 6.0)
    assert not {*"abc"} & many.keys()


def test_a_row_names_the_first_refused_clients() -> None:
    from zk0.records import Refusal

    refusals = tuple(Refusal(client=f"c{number}", reason="late") for number in range(22))
    row = _losses(finished_round(1, 0.5, None, {}).model_copy(update={"refusals": refusals}), 100)
    assert row["refused"].startswith("c0, c1, ")
    assert row["refused"].endswith(", c19 and 2 more")
