"""The table of sums in the report: one row for each round with secure aggregation."""

from zk0.publish.round_values import round_values
from zk0.records import SUM_NAME, Checkpoint, ClientMetrics, Contribution, RoundRecord, SummedUpdates, Update
from zk0.report.metrics import server_eval
from zk0.report.tables.sum_tables import sum_table

METRICS = ClientMetrics(
    policy_loss=0.5, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=3, lr_first=1, lr_last=1, seconds=1
)
SUMMED = SummedUpdates(
    clients=("a", "c"), dropped=("b",), roster="0123456789abcdef", threshold=2, bits=16, step=1e-6, share=0.625
)


def record(summed: SummedUpdates | None) -> RoundRecord:
    update = Update(
        client=SUM_NAME, round=1, global_digest="g", path="p", digest="d", bytes=8, examples=9, dataset=SUM_NAME,
        metrics=METRICS, summed=summed,
    )  # fmt: skip
    weights = Checkpoint(round=1, path="w", digest="d", bytes=1)
    mean = Contribution(client=SUM_NAME, weight=1.0, update_norm=1.0, cosine_to_mean=1.0)
    return RoundRecord(
        round=1,
        checkpoint=weights,
        updates=(update,),
        contributions=(mean,),
        seconds=1,
        finished_at="",
    )


def test_a_sum_has_a_row_and_counts_its_clients() -> None:
    _, rows = sum_table([record(SUMMED)]).as_text()
    assert rows == (("1", "2", "a, c", "b", "2", "16", "0.625", "0123456789ab"),)
    found = server_eval(record(SUMMED)).aggregated_client_metrics
    assert (found.num_clients, found.avg_client_loss, found.std_client_loss) == (2, 0.5, None)
    assert "server_std_client_loss" not in round_values(record(SUMMED))
    assert round_values(record(None))["server_std_client_loss"] == 0


def test_updates_of_single_clients_have_no_row() -> None:
    assert sum_table([record(None)]).rows == ()
