"""Task runs on a real server: tasks that fail once and succeed in the second attempt, and task runs of clients."""

import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from finished_session import write_finished_session
from prefect.utilities.annotations import quote
from published_hub import publish_base_policy
from stale_disk import away_once
from wandb_server import wandb_server

from zk0.audit.ledger import Ledger
from zk0.records import Checkpoint, PolicyRecipe, Refusal, RoundRecord, Statistics
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

CLIENTS = [{"name": name, "dataset": f"hf:lab/{name}"} for name in "ab"]


@pytest.fixture
def hub(hub_server: Any, recordings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub with three datasets; huggingface_hub asks it, and caches in a folder of its own."""
    from huggingface_hub import constants

    for name in ("a", "b", "evaluation"):
        hub_server.publish(f"datasets/lab/{name}", recordings[name])
    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub_server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return hub_server


@pytest.fixture
def session(tmp_path: Path) -> Session:
    values = {
        "clients": CLIENTS,
        "contract": {"cameras": ["overhead", "wrist"], "fps": 10},
        "policy": {"path": "tiny"},
        "data": {"holdout_episodes": 1},
        "federation": {"workers": 0},
        "evaluation": {"datasets": [{"dataset": "hf:lab/evaluation"}]},
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "outputs"),
    }
    return parse_session(values, "test")


@pytest.fixture
def in_flow(prefect_api: str) -> Iterator[Callable[..., tuple[list[int], Any]]]:
    """A function that calls a task in a flow, without waits, and returns its run counts and its state."""
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def call(called: Any, *arguments: Any) -> tuple[list[int], Any]:
        counts: list[int] = []
        states: list[Any] = []
        hooks = [lambda task, run, state: (counts.append(run.run_count), states.append(state))]
        tried = called.with_options(retry_delay_seconds=0, on_completion=hooks, on_failure=hooks)

        @flow
        def calling() -> None:
            tried(*arguments, return_state=True)

        calling()
        (state,) = states
        return counts, state

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield call


def fail_once(hub: Any, pattern: str) -> None:
    """Let the Hub answer the first request that matches with status 425, which its client does not retry."""
    hub.status = lambda request: 425 if hub.count_requests(pattern) == 1 and pattern in request else None


def test_an_evaluation_set(hub: Any, session: Session, in_flow: Any) -> None:
    from tasks.preparation import check_evaluation_set

    fail_once(hub, "/api/datasets/lab/evaluation")
    counts, state = in_flow(check_evaluation_set, session.evaluation_sets()[0], session)
    assert counts == [2]
    assert state.is_completed()


def test_a_dataset_that_does_not_exist_is_asked_for_once(hub: Any, session: Session, in_flow: Any) -> None:
    from tasks.preparation import check_evaluation_set

    missing = session.evaluation_sets()[0].model_copy(update={"dataset": "hf:lab/missing"})
    counts, state = in_flow(check_evaluation_set, missing, session)
    assert counts == [1]
    assert "lab/missing: cannot be fetched from the Hub" in state.message


def test_metadata_before_a_session_starts(hub: Any, session: Session, in_flow: Any) -> None:
    from flows.federated_session import check_inputs

    fail_once(hub, "lab/a/resolve/main/meta/info.json")
    counts, state = in_flow(check_inputs, session)
    assert counts == [2]
    assert state.is_completed()


def test_the_dataset_of_a_client(hub: Any, session: Session, in_flow: Any, tmp_path: Path) -> None:
    from tasks.preparation import join_clients
    from zk0.federation.open import open_federation

    fail_once(hub, "/api/datasets/lab/b")
    with open_federation(session, "s", tmp_path / "s", lambda *_: None):
        counts, state = in_flow(join_clients, "s", session, ())
    assert counts == [2]
    assert state.is_completed()


def test_a_disk_that_comes_back(
    session: Session, in_flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time that the ledger is opened, its server is away."""
    from tasks.rounds import record_round
    from zk0.storage.session_folder import SessionFolder

    here, opened, open_file = SessionFolder(tmp_path / "session"), list[str](), os.open
    checkpoint = Checkpoint(round=0, path="round-000/weights.safetensors", digest="d" * 64, bytes=1)
    record = RoundRecord(round=0, checkpoint=checkpoint, seconds=1.0, finished_at="2026-01-01T00:00:00+00:00")

    def once_stale(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("ledger.jsonl"):
            opened.append(str(path))
            if len(opened) == 1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", once_stale)
    counts, state = in_flow(record_round, session, str(here.path), record)
    assert counts == [2]
    assert state.is_completed()
    assert len(here.ledger.read_text().splitlines()) == 1


def test_the_steps_of_an_intake(hub: Any, recordings: dict[str, Path], in_flow: Any, tmp_path: Path) -> None:
    from tasks.intake import check_data, fetch_data, repair_data, show_preview

    fail_once(hub, "/api/datasets/lab/a")
    counts, state = in_flow(fetch_data, "hf:lab/a", str(tmp_path / "cache"))
    assert (counts, state.is_completed()) == ([2], True)
    root, target = str(recordings["a"]), str(tmp_path / "copy")
    for pattern, called, arguments in (
        (r"/info\.json$", check_data, (root, "a", True, {})),
        (r"/\.copy\.", repair_data, (root, target, "a", {})),
        (r"/info\.json$", show_preview, (root, "a", "degrees", {})),
    ):
        with away_once(pattern):
            counts, state = in_flow(called, *arguments)
        assert (called.name, counts, state.is_completed()) == (called.name, [2], True), state.message


@pytest.mark.usefixtures("images")
def test_attempts_in_the_simulator(
    session: Session, statistics: Statistics, in_flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is away when the second result is written: the attempts are made again, and each has one result.

    In another folder, OpenGL fails once.
    """
    import gymnasium
    import mujoco

    from tasks.evaluation import run_rollouts
    from zk0.evaluation.global_model import build_start_policy
    from zk0.evaluation.session_setup import SessionSetup
    from zk0.storage.results import read_rollouts

    recipe, digest, size = build_start_policy(session, tmp_path / "weights.safetensors")
    checkpoint = Checkpoint(round=1, path="weights.safetensors", digest=digest, bytes=size)
    record = RoundRecord(round=1, checkpoint=checkpoint, seconds=1.0, finished_at="2026-01-01T00:00:00+00:00")
    setup = SessionSetup(recipe=recipe, members=(), sets=(), statistics=statistics)
    rollout = session.rollout.model_copy(update={"seeds": (3, 4), "max_steps": 2, "tasks": ("lift-red",)})
    quick = session.model_copy(update={"rollout": rollout, "video": session.video.model_copy(update={"rollouts": 0})})
    with away_once(r"/\.rollout_\d+_\d+1\.json|/\.rollout_\d+_\d+[3579]\.json"):
        counts, state = in_flow(run_rollouts, quick, str(tmp_path), setup, record, "lift-red")
    assert (counts, state.is_completed()) == ([2], True), state.message
    assert [one.seed for one in read_rollouts(tmp_path)] == [3, 4]
    make, failures = gymnasium.make, [mujoco.FatalError("an OpenGL platform library has not been loaded")]

    def busy_once(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return make(*arguments, **options)

    monkeypatch.setattr(gymnasium, "make", busy_once)
    (busy := tmp_path / "busy").mkdir()
    (busy / "weights.safetensors").symlink_to(tmp_path / "weights.safetensors")
    counts, state = in_flow(run_rollouts, quick, str(busy), setup, record, "lift-red")
    assert (counts, state.is_completed()) == ([2], True), state.message


def test_a_push(hub: Any, session: Session, in_flow: Any, tmp_path: Path) -> None:
    from tasks.releasing import push_release
    from zk0.rules.release import Release

    here = write_finished_session(tmp_path / "session", session)
    record = Ledger(here.ledger).read()[-1]
    release = Release(outcome="allowed", reason="better", round=session.rounds, repo_id="lab/arm", private=True)
    fail_once(hub, "/api/repos/create")
    counts, state = in_flow(push_release.with_options(retries=1), str(here.path), record, release)
    assert (counts, state.is_completed()) == ([2], True), state.message
    assert Release.read(here.release).outcome == "pushed"


def test_a_search_a_night_and_a_comparison(session: Session, in_flow: Any, tmp_path: Path) -> None:
    """The disk is away when results are written, or before a session of its own starts, which then fails at once."""
    from tasks.baseline_benchmark import BenchmarkRequest, train_baseline, train_federated, write_benchmark_results
    from tasks.nightly import append_night, run_benchmark, run_pinned_session, this_machine
    from tasks.tuning import SearchRequest, run_trial, write_search_results
    from tasks.variant_benchmark import VariantRequest, train_variant, write_variant_results
    from zk0.nightly.nightly_ledger import NightlyLedger, NightlyRun
    from zk0.stats.variant_comparison import Variant
    from zk0.tuning.search import Trial, open_search
    from zk0.tuning.trials import Dimension

    def retried(pattern: str, called: Any, *arguments: Any) -> Any:
        with away_once(pattern):
            counts, state = in_flow(called, *arguments)
        assert counts == [2], state.message
        return state

    lost = [one.model_copy(update={"dataset": "local:/no/such/set"}) for one in session.clients]
    wrong = session.model_copy(update={"clients": tuple(lost), "name": "wrong"})
    search = SearchRequest(
        folder=str(tmp_path / "search"), session=wrong, space={"training.lr": Dimension(low=1e-4, high=1e-3)},
        objective="held_out", keep_weights=False,
    )  # fmt: skip
    (tmp_path / "search/trials/000").mkdir(parents=True)
    with open_search(Path(search.folder), search.space, 1) as opened:
        trial = opened.next_trial(1)
        assert isinstance(trial, Trial)
        assert retried(r"/trials/000$", run_trial, 0, search, quote(opened), quote(trial)).is_completed()
        results = opened.finished_trials()
    assert [result.outcome for result in results] == ["failed"]
    assert retried(r"/\.results\.json", write_search_results, 1, search, results).is_completed()

    night = NightlyRun(started_at="2026-01-01T00:00:00+00:00", commit=None, machine=this_machine(), versions={})
    assert retried(r"/nights\.jsonl$", append_night, str(tmp_path / "nights.jsonl"), night).is_completed()
    assert NightlyLedger(tmp_path / "nights.jsonl").read() == (night,)
    (config := tmp_path / "pinned.toml").write_text("rounds = 0")
    assert "rounds" in retried(r"/pinned\.toml$", run_pinned_session, str(config), str(tmp_path)).message

    quick = ("--clients", "2", "--parameters", "100000", "--repeats", "2")
    measured = retried(r"/aggregate-0\.json$", run_benchmark, "aggregate", quick, 1, str(tmp_path))
    assert {len(sample.ratios) for sample in measured.result()} == {1}

    versus = BenchmarkRequest(folder=str(tmp_path / "versus"), session=session, larger_batches=False)
    variant = Variant(name="lr", folder="lr", overrides={})
    variants = VariantRequest(folder=str(tmp_path / "variants"), variants=(variant,), sessions=(session,))
    for folder in (versus.seed_folder(1), variants.variant_folder(0, 1)):
        finished = write_finished_session(folder / "federated" / "2026-01-01_00-00-00_s", session)
        finished.report.touch()
    listed = r"/seed-1/federated$"
    assert retried(listed, train_federated, 1, versus).is_completed()
    assert retried(listed, train_variant, "lr", 0, 1, variants).is_completed()
    assert retried(r"/\.results\.json", write_variant_results, (1,), variants).is_completed()
    assert (tmp_path / "variants/table.md").is_file()
    for failed in (  # without the baselines
        retried(r"/session\.toml$", train_baseline, "a", 1, versus, str(finished.path)),
        retried(listed, write_benchmark_results, (1,), versus),
    ):
        assert "Stale" not in failed.message


def test_a_start_policy(hub: Any, session: Session, in_flow: Any, tmp_path: Path) -> None:
    from tasks.rounds import build_initial_policy

    publish_base_policy(hub, tmp_path / "base", tmp_path / "made")
    policy = session.policy.model_copy(update={"path": "lerobot/smolvla_base"})
    fail_once(hub, "lerobot/smolvla_base/resolve/main/model.safetensors")
    counts, state = in_flow(
        build_initial_policy, session.model_copy(update={"policy": policy}), str(tmp_path / "session"), ()
    )
    assert counts == [2]
    assert state.is_completed()


def test_the_statistics_of_a_start_policy(
    hub: Any, session: Session, statistics: Statistics, in_flow: Any, tmp_path: Path
) -> None:
    from tasks.preparation import choose_normalization

    publish_base_policy(hub, tmp_path / "base", tmp_path / "made")
    recipe = PolicyRecipe(path="lerobot/smolvla_base", cameras=("overhead", "wrist"), joints=6, seed=1)
    fail_once(hub, "lerobot/smolvla_base/resolve/main/policy_preprocessor.json")
    counts, state = in_flow(choose_normalization, session, recipe, statistics, None)
    assert (counts, state.is_completed()) == ([2], True), state.message


def test_a_tracker_that_comes_back(
    session: Session, in_flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens at the first attempt; before the second one, a server does."""
    import wandb

    from tasks.retry import is_transient
    from tasks.tracking import start_tracking
    from zk0.publish.trackers import current_trackers

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"BASE_URL": f"http://127.0.0.1:{port}", "API_KEY": "a" * 40, "INIT_TIMEOUT": "4"}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    online = session.model_copy(update={"tracking": session.tracking.model_copy(update={"wandb": "online"})})
    (folder := tmp_path / "2026-11-22_10-00-00_arms").mkdir()
    with ExitStack() as server, ExitStack() as stack:

        async def before_second_attempt(*state: Any) -> bool:
            passing = await is_transient(*state)
            server.enter_context(wandb_server(port))
            return passing

        called = start_tracking.with_options(retry_condition_fn=before_second_attempt)
        counts, state = in_flow(called, online, str(folder), quote(stack))
        assert counts == [2], state.message
        assert state.is_completed()
        assert current_trackers(folder.name)
    wandb.teardown()


def test_rounds_for_a_tracker(session: Session, in_flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.tracking import log_rounds_to_trackers, start_tracking

    monkeypatch.setenv("HOME", str(tmp_path))
    tracked = session.model_copy(update={"tracking": session.tracking.model_copy(update={"wandb": "offline"})})
    here = write_finished_session(tmp_path / "2026-11-22_10-00-00_arms", tracked, rounds=2)
    here.rollouts_folder.mkdir()
    with ExitStack() as stack:
        _, state = in_flow(start_tracking, tracked, str(here.path), quote(stack))
        assert state.is_completed(), state.message
        with away_once(f"^{here.rollouts_folder}$"):
            counts, state = in_flow(log_rounds_to_trackers, 2, str(here.path), Ledger(here.ledger).read())
    assert (counts, state.result()) == ([2], 3), state.message


def test_each_step_of_a_client_that_joins_is_a_task_run(
    prefect_api: str, recordings: dict[str, Path], session: Session, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    from prefect import flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.runtime import flow_run
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.preparation import join_clients
    from zk0.federation.open import open_federation

    places = {"a": recordings["a"], "b": tmp_path / "nowhere"}
    clients = tuple(
        one.model_copy(update={"dataset": f"local:{places[one.name]}", "place": None}) for one in session.clients
    )
    session = session.model_copy(update={"clients": clients})

    @flow
    def joining() -> str:
        state = join_clients("s", session, (), return_state=True)
        assert "nowhere" in state.message
        return str(flow_run.id)

    with temporary_settings({PREFECT_API_URL: prefect_api}), open_federation(session, "s", tmp_path / "s"):
        of_flow = FlowRunFilter(id=FlowRunFilterId(any_=[joining()]))
    with SyncPrefectClient(prefect_api) as client:

        def ended() -> Any:
            runs = client.read_task_runs(flow_run_filter=of_flow)
            found = {run.name: run for run in runs if run.state and run.state.is_final()}
            return found if len(found) == 9 else None

        found = wait_until(ended, 120)
    steps = [found[f"a: {step}"] for step in ("fetch", "repair", "check", "split", "statistics")]
    assert all(run.state.is_completed() for run in (*steps, found["a joins"]))
    assert [run.state.message for run in steps[1:]] == [
        "nothing repaired", "no error, 2 warnings", "2 episodes to train on, 1 held out", "moments of 27 frames",
    ]  # fmt: skip
    assert all(before.end_time <= after.start_time for before, after in itertools.pairwise(steps))
    assert {one.id for run in steps for one in run.task_inputs["__parents__"]} == {found["a joins"].id}
    for name in ("b: fetch", "b joins"):
        assert found[name].state.is_failed()
        assert "nowhere" in found[name].state.message


def test_hidden_clients_have_no_task_run_and_their_lines_are_with_the_round(
    prefect_api: str, wait_until: Callable[..., Any]
) -> None:
    from prefect import flow, task
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.runtime import flow_run
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.client_task_runs import ClientTaskRuns

    @task
    def a_round(number: int, shown: bool) -> None:
        with ClientTaskRuns("trains", number, shown) as runs:
            for client in ("a", "b"):
                runs.on_request(client)
            for client in ("a", "b"):
                runs.on_result(Refusal(client=client, reason="no disk"))
                runs.log_line(client, " refused: no disk")

    @flow
    def session() -> str:
        a_round(1, shown=False)
        a_round(2, shown=True)
        return str(flow_run.id)

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        of_session = FlowRunFilter(id=FlowRunFilterId(any_=[session()]))
    with SyncPrefectClient(prefect_api) as client:

        def names() -> list[str]:
            return sorted(run.name for run in client.read_task_runs(flow_run_filter=of_session) if "trains" in run.name)

        found = wait_until(lambda: (shown := names()) and len(shown) >= 2 and shown, 120)
    assert found == ["a trains, round 2", "b trains, round 2"]
