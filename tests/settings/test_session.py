"""Settings: errors name each wrong setting, overrides, clients of a session, plans, and a reader for every setting."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from zk0.errors import SettingsError
from zk0.records import Record, WireFormat
from zk0.settings.loading import apply_overrides, load_session, override_session, parse_session, to_toml
from zk0.settings.plans import RoundPlan, session_terms
from zk0.settings.session import Session

ROOT = Path(__file__).parents[2]
MINIMAL: dict[str, Any] = {
    "clients": [{"name": "a", "dataset": "x/a"}, {"name": "b", "dataset": "x/b"}],
    "evaluation": {"datasets": [{"dataset": "x/evaluation"}]},
}
BUFFERED: dict[str, Any] = {"federation": {"mode": "buffered"}}
SHARED: dict[str, Any] = {"partition": {"dataset": "x/shared", "clients": 3}, "data": {"holdout_episodes": 5}}


def parse(**changes: Any) -> Session:
    return parse_session(MINIMAL | changes, "here")


CLIENTS = [{"name": n, "dataset": f"x/{n}"} for n in "abc"]
SECURE: dict[str, Any] = {
    "clients": CLIENTS,
    "federation": {"secure": True},
    "aggregation": {"quarantine_factor": 0},
    "evaluation": MINIMAL["evaluation"] | {"clients_frequency": 0},
}


def test_secure_aggregation_names_everything_that_it_excludes() -> None:
    """All at once, before anything is downloaded."""
    assert parse(**SECURE).federation.secure
    assert parse(**{**SECURE, "federation": {"secure": True, "wire_down": "bf16"}}).federation.secure
    with pytest.raises(SettingsError) as caught:
        parse(
            clients=[*CLIENTS[:1], {"name": "secure-sum", "dataset": "x/s"}],
            federation={"secure": True, "wire": "int8", "compress": True},
            evaluation=MINIMAL["evaluation"] | {"joining_report": True},
            scheduler={"adaptive_lr_enabled": True, "adaptive_mu_enabled": True, "high_loss_multiplier": 1.5},
        )
    text = str(caught.value)
    for expected in (
        "needs aggregation.quarantine_factor = 0",
        "no federation.wire or federation.compress",
        "no scheduler.adaptive_lr_enabled",
        "no scheduler.adaptive_mu_enabled",
        "needs evaluation.clients_frequency = 0",
        "no evaluation.joining_report",
        "2 client(s) in a round, expected 3 or more",
        "no client named secure-sum",
    ):
        assert expected in text
    with pytest.raises(SettingsError, match=r"no federation\.mode buffered: the clients of a sum agree on one round"):
        parse(**{**SECURE, "federation": {"secure": True, "mode": "buffered"}})
    with pytest.raises(SettingsError, match=r"no training\.scope lora"):
        parse(**SECURE, training={"scope": "lora"})
    with pytest.raises(SettingsError, match=r"no federation\.ray_address: a client keeps its secrets"):
        parse(**{**SECURE, "federation": {"secure": True, "engine": "ray", "ray_address": "head:6379"}})
    nodes = {"secure": True, "engine": "deployment"}
    with pytest.raises(SettingsError, match=r"2 client\(s\) in a round, expected 3 or more"):
        parse(**{**SECURE, "clients": [], "federation": nodes})
    with pytest.raises(SettingsError, match=r"2 client\(s\) in a round, expected 3 or more"):
        parse(**{**SECURE, "clients": [], "federation": nodes | {"nodes": ["a", "b", "c"]}})  # two may be left
    assert parse(**{**SECURE, "clients": [], "federation": nodes | {"min_updates": 3}}).federation.secure


class TestFaults:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"nonsense": 1}, "here: nonsense: unknown setting"),
            ({"training": {"learning_rate": 1}}, "here: training.learning_rate: unknown setting"),
            ({"clients": [{"name": "a", "dataset": "x/a", "weight": 2}]}, "clients.0.weight: unknown setting"),
            ({"rounds": "many"}, "here: rounds: .*integer.*found 'many'"),
            ({"rounds": 0}, "here: rounds: .*greater than or equal to 1, found 0"),
            ({"seed": 2**63}, "seed: .*less than 9223372036854775808"),
            ({"rounds": 2.5}, "here: rounds: .*integer.*found 2.5"),
            ({"training": {"lr": 0}}, "training.lr: .*greater than 0, found 0"),
            ({"training": {"lr": float("nan")}}, "training.lr: .*finite number, found nan"),
            ({"training": {"amp": "fp16"}}, "training.amp: .*True, False or 'auto', found 'fp16'"),
            ({"training": {"device": "tpu"}}, "training.device: .*'auto', 'cpu' or 'cuda', found 'tpu'"),
            ({"training": {"local_steps": 3, "local_epochs": 2}}, "training: exactly one of local_steps and local_ep"),
            ({"scheduler": {"restart_factor": 1.5}}, "scheduler.restart_factor: .*integer.*found 1.5"),
            ({"scheduler": {"restart_factor": "2"}}, "scheduler.restart_factor: .*integer, found '2'"),
            ({"scheduler": {"type": "linear"}}, "scheduler.type: .*found 'linear'"),
            ({"normalization": "none"}, "normalization: .*'policy', 'pooled' or 'client', found 'none'"),
            ({"name": "a/b"}, "name: .*found 'a/b'"),
            ({"clients": [{"name": "../a", "dataset": "x/a"}]}, "clients.0.name: .*found '../a'"),
            ({"clients": [{"name": "a", "dataset": ""}]}, "clients.0.dataset: .*at least 1 character"),
            ({"clients": [{"dataset": "x/a"}]}, "clients.0.name: Field required"),
            ({"clients": MINIMAL["clients"] * 2}, "clients: client names must differ, found twice: a, b"),
            ({"clients": []}, r"exactly one of \[\[clients\]\] and \[partition\]"),
            ({"partition": SHARED["partition"]}, r"exactly one of \[\[clients\]\] and \[partition\]"),
            ({"federation": {"min_updates": 3}}, "federation.min_updates 3 with 2 client"),
            ({"federation": {"engine": "ray", "workers": 0}}, "federation.workers must be at least 1 with the ray"),
            ({"federation": {"secure_bits": 32}}, "secure_bits is of secure aggregation, found federation.secure fal"),
            ({**SECURE, "federation": {"secure": True, "secure_neighbors": 5}}, "secure_neighbors: .*multiple of 2"),
            ({**SECURE, "training": {"personal": ["*.bias"]}}, "secure: no training.personal: a client saves its own"),
            (
                {**SECURE, "clients": [{"name": f"c{n}", "dataset": f"x/{n}"} for n in range(129)]},
                "more than 128 clients in a round need federation.secure_bits = 32",
            ),
            ({"buffer": {"size": 1}}, r"\[buffer\] is of federation.mode \"buffered\", found mode \"synchronous\""),
            ({**BUFFERED, "buffer": {"size": 3}}, r"buffer.size 3 with 2 client\(s\), of which a buffer holds one"),
            ({**BUFFERED, "buffer": {"size": 1}}, "federation.min_updates 2 with buffer.size 1"),
            ({**BUFFERED, "buffer": {"max_stale_updates": 3}}, "max_stale_updates 3 with buffer.size 2"),
            (
                {**BUFFERED, "buffer": {"staleness": "constant", "staleness_exponent": 1.0}},
                "staleness_exponent 1 is of staleness polynomial, found constant",
            ),
            (
                {"federation": BUFFERED["federation"] | {"fraction_fit": 0.5}},
                "fraction_fit 0.5; expected buffer.concur",
            ),
            (
                {**BUFFERED, "evaluation": MINIMAL["evaluation"] | {"joining_report": True}},
                "no evaluation.joining_repo",
            ),
            ({**BUFFERED, "buffer": {"simulated_seconds": {"a": 1}}}, "simulated_seconds of a; expected .*: a, b"),
            ({**BUFFERED, "buffer": {"simulated_seconds": {"a": 1, "b": 0}}}, "simulated_seconds.b: .*greater than 0"),
            (
                {
                    **BUFFERED,
                    "clients": [*MINIMAL["clients"], {"name": "c", "dataset": "x/c", "from_round": 2}],
                    "buffer": {"size": 3},
                },
                r"buffer.size 3 with 2 client\(s\), of which",
            ),
            (
                {
                    **BUFFERED,
                    "clients": [{"name": f"c{i}", "dataset": f"x/{i}"} for i in range(9)],
                    "buffer": {"max_staleness": 3},
                },
                "3 with 9 clients at work and buffer.size 2: .* begins 4 server steps .*concurrency of at most 8, or",
            ),
            (
                {**BUFFERED, "scheduler": {"adaptive_lr_enabled": True, "high_loss_multiplier": 2}},
                "scheduler.high_loss_multiplier 2 with (2 client|buffer.size 2)",
            ),
            ({"contract": {"cameras": []}}, "contract.cameras: .*at least 1 item"),
            (
                {"federation": {"wire": "int8"}, "training": {"scope": "lora"}},
                "federation.wire int8 with training.scope lora",
            ),
            ({"training": {"scope": "experts"}}, r"scope: expected expert, lora, all or .* \[\"experts\"\], found"),
            ({"training": {"scope": []}}, "training.scope: an empty list trains nothing"),
            ({"training": {"scope": ["a b"]}}, "training.scope.*: String should match pattern .*found 'a b'"),
            ({"training": {"scope": "all"}}, 'scope all trains .* features embeddings caches; set .*features = "off"'),
            ({"training": {"adapter": "dora"}}, 'adapter .dora. is now scope: expected scope = "expert", "lora" or'),
            ({"training": {"adapter": "lora", "scope": "all"}}, "adapter .lora. is now scope"),
            (
                {"evaluation": MINIMAL["evaluation"] | {"joining_report": True}, "training": {"scope": "lora"}},
                "evaluation.joining_report with training.scope lora",
            ),
            ({"federation": {"wire_down": "bf16"}}, "federation.wire_down bf16 needs deltas in return"),
            ({"scheduler": {"lr_boost_factor": 0.5}}, "scheduler.lr_boost_factor: .*equal to 1, found 0.5"),
            ({"scheduler": {"mu_adjust_factor": 0.99}}, "scheduler.mu_adjust_factor: .*equal to 1, found 0.99"),
            (
                {"training": {"lr": 1e-4}, "scheduler": {"eta_min": 1.0}},
                "scheduler.eta_min 1 is the minimum learning rate, and training.lr 0.0001 is below it",
            ),
            (
                {"training": {"proximal_mu": 0.01}, "scheduler": {"adaptive_mu_enabled": True, "mu_min": 5}},
                "scheduler.mu_min 5 is the minimum of an adjusted mu, and training.proximal_mu 0.01 is below it",
            ),
            (
                {"scheduler": {"mu_decay": 0.9, "mu_min": 0.02}},
                "scheduler.mu_min 0.02 is the minimum of an adjusted mu",
            ),
            (
                {"scheduler": {"adaptive_lr_enabled": True}},
                r"scheduler.high_loss_multiplier 2 with 2 client\(s\) in a round: .*expected a multiplier below 2",
            ),
            (
                {
                    "clients": [{"name": name, "dataset": f"local:{name}"} for name in "abcdef"],
                    "federation": {"fraction_fit": 0.4},
                    "scheduler": {"adaptive_lr_enabled": True},
                },
                r"scheduler.high_loss_multiplier 2 with 2 client\(s\) in a round: .*expected a multiplier below 2",
            ),
            (
                {
                    "rounds": 3,
                    "clients": [
                        {"name": name, "dataset": f"local:{name}", "from_round": first}
                        for name, first in (("a", 1), ("b", 1), ("c", 9))
                    ],
                    "scheduler": {"adaptive_lr_enabled": True},
                },
                r"scheduler.high_loss_multiplier 2 with 2 client\(s\) in a round: .*expected a multiplier below 2",
            ),
            ({"scheduler": {"high_loss_multiplier": 0.9}}, "high_loss_multiplier: .*equal to 1, found 0.9"),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_wrong_setting_is_named_in_one_line(self, changes: dict, message: str) -> None:
        with pytest.raises(SettingsError, match=message) as found:
            parse(**changes)
        assert "\n" not in str(found.value)

    @pytest.mark.parametrize(
        ("changes", "end"),
        [
            ({"rouns": 1}, "rouns: unknown setting; did you mean rounds?"),
            ({"trainng": {"lr": 1}}, "trainng: unknown setting; did you mean training?"),
            (
                {"training": {"local_step": 1}},
                "training.local_step: unknown setting; did you mean training.local_steps?",
            ),
            ({"local_steps": 1}, "local_steps: unknown setting; did you mean training.local_steps?"),
            ({"training": {"engine": "ray"}}, "training.engine: unknown setting; did you mean federation.engine?"),
            (
                {"clients": [{"name": "a", "dataset": "x/a", "renamemap": {}}]},
                "clients.0.renamemap: unknown setting; did you mean clients.rename_map?",
            ),
            ({"velocity": 1}, "velocity: unknown setting"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_a_similar_setting_is_suggested(self, changes: dict, end: str) -> None:
        with pytest.raises(SettingsError) as found:
            parse(**changes)
        assert str(found.value).split("here: ")[1] == end

    def test_rules_that_do_not_apply_are_not_checked(self) -> None:
        mu = parse(training={"proximal_mu": 0.01}, scheduler={"mu_min": 5}).scheduler.mu_min
        fedavg = parse(training={"proximal_mu": 0}, scheduler={"adaptive_mu_enabled": True}).training.proximal_mu
        boost = parse(scheduler={"adaptive_lr_enabled": True, "high_loss_multiplier": 1.9}).scheduler
        assert (mu, fedavg, boost.high_loss_multiplier) == (5, 0, 1.9)

    def test_one_error_names_all_faults(self) -> None:
        with pytest.raises(SettingsError, match=r"rounds: .*; seed: .*; training.lr: "):
            parse(rounds=0, seed=-1, training={"lr": -1})

    def test_partition_index_is_below_the_count(self) -> None:
        client = {"name": "a", "dataset": "x/a", "partition_index": 2, "partition_count": 2}
        with pytest.raises(SettingsError, match=r"clients.0: partition_index 2 must be below partition_count 2"):
            parse(clients=[client])

    def test_file_is_missing_or_not_toml(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"nothing.toml: cannot be read \(No such file"):
            load_session(tmp_path / "nothing.toml")
        with pytest.raises(SettingsError, match=r"cannot be read \(Is a directory"):
            load_session(tmp_path)
        bad = tmp_path / "bad.toml"
        bad.write_text("rounds = \n")
        with pytest.raises(SettingsError, match=r"bad.toml: not TOML: .*line 1"):
            load_session(bad)
        bad.write_bytes(b"name = '\xff'")
        with pytest.raises(SettingsError, match=r"bad.toml: not TOML"):
            load_session(bad)

    @pytest.mark.parametrize(
        "text",
        [
            f"rounds = {'9' * 5000}",
            f"x = {'[' * 3000}",
            "a" + ".a" * 5000 + " = 1",
            f"name = '{'a' * 10**6}'",
            f"seed = '{'[/x]' * 10**5}'",
        ],
    )
    def test_a_file_of_somebody_else_is_refused_in_one_short_line(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "s.toml").write_text(text)
        with pytest.raises(SettingsError, match=r"s\.toml: (not TOML|name|seed): ") as error:
            load_session(tmp_path / "s.toml")
        assert len(str(error.value)) < 500 + len(str(tmp_path))
        assert "\n" not in str(error.value)


class TestOverrides:
    def test_override_replaces_the_setting_of_the_file(self) -> None:
        demo = ROOT / "deployments/sessions/demo.toml"
        session = load_session(demo, {"rounds": 7, "training.lr": 3e-4, "scheduler.type": "reduce_on_plateau"})
        assert (session.rounds, session.training.lr, session.scheduler.type) == (7, 3e-4, "reduce_on_plateau")
        assert session.training.batch_size == load_session(demo).training.batch_size

    def test_arguments_are_not_changed(self) -> None:
        values = {"training": {"lr": 1.0}}
        assert apply_overrides(values, {"training.lr": 2.0}) == {"training": {"lr": 2.0}}
        assert values == {"training": {"lr": 1.0}}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ({"training.speed": 1}, "training.speed: unknown setting"),
            ({"speed": 1}, "speed: unknown setting"),
            ({"name.first": 1}, "name.first: name is a str, not a table"),
            ({"clients.0.name": "x"}, "clients.0.name: clients is a list, not a table"),
            ({"rounds": "x"}, "rounds: .*found 'x'"),
        ],
    )
    def test_unknown_or_invalid_override_is_an_error(self, override: dict, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            load_session(ROOT / "deployments/sessions/demo.toml", override)

    def test_local_steps_replace_the_default_of_local_epochs(self) -> None:
        assert parse().training.local_epochs == 1
        steps = parse(training={"local_steps": 20}).training
        assert (steps.local_steps, steps.local_epochs) == (20, None)
        with pytest.raises(SettingsError, match="exactly one of local_steps and local_epochs"):
            parse(training={"local_epochs": 2, "local_steps": 2})


class TestClients:
    def test_clients_are_local_clients(self) -> None:
        assert parse().local_clients() == parse().clients

    def test_clients_join_buffered_rounds_later_on_every_engine(self) -> None:
        late = {"name": "c", "dataset": "x/c", "from_round": 2}
        assert parse(clients=[*MINIMAL["clients"], late], **BUFFERED).accepts_new_clients()
        assert parse(clients=[], federation={"mode": "buffered", "engine": "deployment"}).accepts_new_clients()
        cluster = {"mode": "buffered", "engine": "ray", "ray_address": "head:6379"}
        assert parse(clients=[*MINIMAL["clients"], late], federation=cluster).accepts_new_clients()

    def test_nodes_of_the_deployment_engine_bring_their_own_datasets(self) -> None:
        rules = {"engine": "deployment", "nodes": ["b", "a"]}
        session = parse(clients=[], federation=rules)
        assert (session.local_clients(), session.client_names()) == ((), ("b", "a"))
        assert parse(clients=[], federation={"engine": "deployment"}).client_names() == ()
        assert (
            Path(session.with_absolute_paths(Path("/x")).federation.server)
            == Path("~/.zk0/server").expanduser().resolve()
        )
        assert session.with_absolute_paths(Path("/x")).federation.nodes == ("b", "a")
        with pytest.raises(SettingsError, match=r"leave \[\[clients\]\] and \[partition\] out"):
            parse(federation=rules)
        for name in ("min_updates", "min_nodes"):
            with pytest.raises(SettingsError, match=rf"{name} 3 with 2 client"):
                parse(clients=[], federation={**rules, name: 3})

    @pytest.mark.parametrize(("updates", "nodes", "least"), [(2, 1, 2), (1, 1, 1), (2, 4, 4), (5, 4, 5)])
    def test_clients_with_which_a_session_begins(self, updates: int, nodes: int, least: int) -> None:
        rules = {"engine": "deployment", "min_updates": updates, "min_nodes": nodes}
        assert parse(clients=[], federation=rules).min_clients() == least

    def test_client_with_a_later_from_round_joins_a_running_session(self) -> None:
        clients = [{"name": n, "dataset": f"local:{n}", "from_round": r} for n, r in (("a", 1), ("b", 1), ("c", 3))]
        session = parse(clients=clients)
        assert (session.initial_client_names(), session.client_names()) == (("a", "b"), ("a", "b", "c"))
        assert [session.takes_part("c", number) for number in (1, 2, 3, 4)] == [False, False, True, True]
        assert session.takes_part("whoever", 1)
        assert session.accepts_new_clients()
        assert not parse().accepts_new_clients()
        with pytest.raises(SettingsError, match=r"min_updates 2 with 1 client\(s\) in round 1"):
            parse(clients=clients[1:])

    def test_new_nodes_join_a_running_session_unless_it_waits_for_none(self) -> None:
        for rules, grows in (({}, True), ({"nodes": ["a", "b"]}, True), ({"newcomer_seconds": 0}, False)):
            assert parse(clients=[], federation={"engine": "deployment", **rules}).accepts_new_clients() is grows

    def test_partition_makes_one_client_for_each_share(self) -> None:
        session = parse_session(SHARED | {"evaluation": MINIMAL["evaluation"]}, "here")
        found = [(m.name, m.dataset, m.partition_index, m.partition_count) for m in session.local_clients()]
        assert found == [(f"client_{i}", "x/shared", i, 3) for i in range(3)]

    def test_partition_without_evaluation_sets_evaluates_on_its_held_out_episodes(self) -> None:
        session = parse_session(SHARED, "here")
        assert [(s.dataset, s.last_episodes) for s in session.evaluation_sets()] == [("x/shared", 5)]


def test_relative_folders_are_resolved_against_a_base(tmp_path: Path) -> None:
    clients = [{"name": "a", "dataset": "local:data/a"}, {"name": "b", "dataset": "local:/data/b"}]
    clients += [{"name": "c", "dataset": "hf:user/c"}, {"name": "d", "dataset": "sim:lift-red"}]
    datasets = [{"dataset": "local:../evaluation"}, {"dataset": "user/evaluation"}, {"dataset": "local:~/evaluation"}]
    values = {"clients": clients, "evaluation": {"datasets": datasets}, "output_dir": "out", "cache_dir": "~/cache"}
    moved = parse_session(values, "here").with_absolute_paths(tmp_path / "base")
    home = Path.home()
    assert [c.dataset for c in moved.clients] == [
        f"local:{tmp_path}/base/data/a", "local:/data/b", "hf:user/c", "sim:lift-red",
    ]  # fmt: skip
    assert [s.dataset for s in moved.evaluation.datasets] == [
        f"local:{tmp_path}/evaluation", "user/evaluation", f"local:{home}/evaluation",
    ]  # fmt: skip
    assert (moved.output_dir, moved.cache_dir) == (f"{tmp_path}/base/out", f"{home}/cache")
    assert moved.with_absolute_paths(Path("/elsewhere")) == moved
    shared = parse_session(SHARED | {"partition": {"dataset": "local:x", "clients": 2}}, "here").with_absolute_paths(
        tmp_path
    )
    assert {m.dataset for m in shared.local_clients()} == {f"local:{tmp_path}/x"}


class TestFiles:
    @pytest.mark.parametrize("file", sorted((ROOT / "deployments/sessions").glob("*.toml")), ids=lambda f: f.stem)
    def test_every_session_file_is_valid(self, file: Path) -> None:
        session = load_session(file)
        assert session.name == file.stem
        assert (
            len(session.local_clients()) >= session.federation.min_updates or session.federation.engine == "deployment"
        )
        assert session.evaluation_sets()

    @pytest.mark.parametrize("file", sorted((ROOT / "deployments/sessions").glob("*.toml")), ids=lambda f: f.stem)
    def test_toml_of_a_session_gives_the_session_again(self, file: Path) -> None:
        session = load_session(file)
        assert parse_session(tomllib.loads(to_toml(session)), "again") == session
        assert override_session(session, {}, "again") == session

    def test_documented_session_files_exist(self) -> None:
        names = {f.stem for f in (ROOT / "deployments/sessions").glob("*.toml")}
        assert {"demo", "so100", "shared"} <= names


class TestRoundPlan:
    def test_json_names_lr_and_mu_once(self) -> None:
        """The numbers that the schedule decided; a second place could hold others, which a client might use."""
        session = parse(training={"lr": 0.5, "proximal_mu": 0.25})
        recipe = {"path": "tiny", "cameras": ("wrist",), "joints": 6, "seed": 1}
        common = {"terms": session_terms(session, "s"), "client": "a", "recipe": recipe, "statistics": None}
        common |= {"round": 1, "global_digest": "0", "lr": 0.1, "mu": 0.2, "scheduler": session.scheduler}
        text = RoundPlan(**common, training=session.training.local_settings()).model_dump_json()
        keys = re.findall(r'"(\w+)":', text)
        assert [key for key in keys if key in ("lr", "mu", "proximal_mu")] == ["lr", "mu"]
        assert (json.loads(text)["lr"], json.loads(text)["mu"]) == (0.1, 0.2)
        with pytest.raises(ValidationError, match=r"training\.proximal_mu"):
            RoundPlan(**common, training=session.training)

    def test_digest_depends_on_every_field(self) -> None:
        session = parse()
        recipe = {"path": "tiny", "cameras": ("wrist",), "joints": 6, "seed": 1}
        values = {
            "terms": session_terms(session, "s"),
            "round": 1,
            "client": "a",
            "recipe": recipe,
            "global_digest": "0",
        }
        values |= {"statistics": None, "lr": 1.0, "mu": 0.0, "training": session.training.local_settings()}
        plan = RoundPlan(**values, scheduler=session.scheduler)
        assert RoundPlan.model_validate_json(plan.model_dump_json()).digest() == plan.digest()
        changed = [
            {"terms": session_terms(session, "t")}, {"round": 2}, {"client": "b"}, {"global_digest": "1"}, {"lr": 2.0},
            {"mu": 0.1}, {"recipe": plan.recipe.model_copy(update={"seed": 2})},
            {"training": plan.training.model_copy(update={"eps": 1e-7})},
            {"scheduler": session.scheduler.model_copy(update={"eta_min": 1e-7})}, {"wire": WireFormat(upload="bf16")},
            {"wire": WireFormat(compressed=True)},
        ]  # fmt: skip
        assert len({plan.model_copy(update=c).digest() for c in changed} | {plan.digest()}) == len(changed) + 1


def test_rounds_that_are_evaluated() -> None:
    session = parse(rounds=7, evaluation={**MINIMAL["evaluation"], "frequency": 3, "clients_frequency": 4})
    assert [n for n in range(8) if session.evaluates_after(n)] == [0, 3, 6, 7]
    assert [n for n in range(8) if session.evaluates_on_clients_after(n)] == [0, 4, 7]
    never = parse(rounds=2, evaluation={**MINIMAL["evaluation"], "clients_frequency": 0})
    assert not any(never.evaluates_on_clients_after(n) for n in range(3))
    assert not parse(rounds=2, data={"holdout_episodes": 0}).evaluates_on_clients_after(2)


def test_an_absolute_path_is_a_dataset_of_this_machine() -> None:
    session = parse(clients=[{"name": "a", "dataset": "/data/arm"}, {"name": "b", "dataset": "hf:lab/arm"}])
    assert [client.dataset for client in session.clients] == ["local:/data/arm", "hf:lab/arm"]


def test_held_out_episodes_that_all_clients_share_are_evaluated_once() -> None:
    """By the server, or, where it evaluates on other datasets, by the first client."""
    assert not parse_session(SHARED, "here").evaluates_on_clients_after(1)
    assert parse_session(SHARED | {"evaluation": MINIMAL["evaluation"]}, "here").evaluates_on_clients_after(1)


def test_rounds_that_are_rolled_out() -> None:
    def rounds_of(**rollout: Any) -> list[int]:
        session = parse(rounds=5, rollout={"tasks": ["lift-red"]} | rollout)
        return [n for n in range(6) if session.rolls_out_after(n)]

    assert rounds_of() == [0, 5]
    assert rounds_of(base=False) == [5]
    assert rounds_of(frequency=2) == [0, 2, 4, 5]
    assert rounds_of(tasks=[]) == []
    with pytest.raises(SettingsError, match=r"rollout.seeds: 3 seeds, 2 of them different"):
        parse(rollout={"seeds": [1, 2, 1]})


USING_FUNCTIONS = (
    "used_datasets",
    "evaluates_after",
    "evaluates_on_clients",
    "evaluates_on_clients_after",
    "evaluation_sets",
    "local_clients",
    "lora_shape",
    "renders_videos_after",
    "rolls_out_after",
    "saves_policy_after",
    "session_terms",
    "takes_part",
)
"""Functions of zk0/settings that use settings; all others only check, copy or move them."""


def setting_names(model: type[Record], path: str = "") -> dict[str, str]:
    """Dotted name -> field name of every setting that is not a table."""
    found = {}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        tables = [k for k in kinds if isinstance(k, type) and issubclass(k, Record)]
        found |= setting_names(tables[0], f"{path}{name}.") if tables else {f"{path}{name}": name}
    return found


def readers(file: Path) -> list[ast.AST]:
    """All nodes of a file; of the settings' own files, only those of functions that use a setting, not check it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file.parent != ROOT / "zk0/settings":
        return list(ast.walk(tree))
    used = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in USING_FUNCTIONS]
    return [node for function in used for node in ast.walk(function)]


def test_every_setting_has_a_reader() -> None:
    """Some code outside of its definition and its validation reads its name as an attribute."""
    read: set[str] = set()
    for package in ("zk0", "tasks", "flows"):
        for file in (ROOT / package).rglob("*.py"):
            for node in readers(file):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
    settings = setting_names(Session)
    assert len(settings) > 60
    unread = sorted(dotted for dotted, name in settings.items() if name not in read)
    assert unread == []


def test_joining_report_needs_held_out_episodes() -> None:
    evaluation = {"datasets": [{"dataset": "local:y"}], "joining_report": True}
    values = {"partition": {"dataset": "local:x", "clients": 2}, "evaluation": evaluation}
    assert parse_session(values, "x").evaluation.joining_report
    with pytest.raises(SettingsError, match=r"joining_report needs data\.holdout_episodes of 1 or more"):
        parse_session(values | {"data": {"holdout_episodes": 0}}, "x")


@pytest.mark.parametrize(
    ("settings", "override", "steps_and_epochs"),
    [
        ("local_epochs = 1", {"training.local_steps": 2}, (2, None)),
        ("local_steps = 7", {"training.local_epochs": 3}, (None, 3)),
        ("local_steps = 7", {"training.local_steps": 2}, (2, None)),
    ],
)
def test_an_override_replaces_the_setting_that_it_excludes(
    tmp_path: Path, settings: str, override: dict[str, int], steps_and_epochs: tuple[int | None, int | None]
) -> None:
    text = (ROOT / "deployments/sessions/demo.toml").read_text()
    config = tmp_path / "demo.toml"
    config.write_text(re.sub(r"(?m)^local_(steps|epochs) = .*$", settings, text))
    training = load_session(config, override).training
    assert (training.local_steps, training.local_epochs) == steps_and_epochs
    again = override_session(load_session(config), override, "again").training
    assert (again.local_steps, again.local_epochs) == steps_and_epochs
