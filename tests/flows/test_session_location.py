"""The folder of a session that resumes by the id of its flow run."""

from pathlib import Path


def test_a_session_whose_folder_was_moved(prefect_api: str, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.federated_session import federated_session
    from flows.session_location import folder_to_resume

    overrides = {"output_dir": str(tmp_path / "old")}
    parameters = {"config": "demo", "overrides": overrides}
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        with get_client(sync_client=True) as client:
            run = client.create_flow_run(federated_session, parameters=parameters)
            again = client.create_flow_run(federated_session, parameters=parameters | {"resume": str(run.id)})
        first = folder_to_resume(str(run.id), {})
        moved = folder_to_resume(str(again.id), {str(tmp_path / "old"): str(tmp_path / "new")})
    assert first.parent == tmp_path / "old"
    assert moved == tmp_path / "new" / first.name
