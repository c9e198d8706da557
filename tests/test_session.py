"""Settings: every default in one place, every fault told by name, every setting read by someone."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import SettingsError
from zk0.folder import toml_values
from zk0.records import Record, Wire
from zk0.session import RoundPlan, Session, apply_overrides, load_session, parse_session, terms_of

ROOT = Path(__file__).parents[1]
LEAST: dict[str, Any] = {
    "clients": [{"name": "a", "dataset": "x/a"}, {"name": "b", "dataset": "x/b"}],
    "evaluation": {"datasets": [{"dataset": "x/judge"}]},
}
SHARED: dict[str, Any] = {"partition": {"dataset": "x/shared", "clients": 3}, "data": {"holdout_episodes": 5}}


def parse(**changes: Any) -> Session:
    return parse_session(LEAST | changes, "here")


class TestFaults:
    @pytest.mark.parametrize(
        ("changes", "said"),
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
            ({"training": {"device": "tpu"}}, "training.device: .*'auto', 'cpu' or 'cuda', found 'tpu'"),
            ({"training": {"local_steps": 3, "local_epochs": 2}}, "training: exactly one of local_steps and local_ep"),
            ({"scheduler": {"restart_factor": 1.5}}, "scheduler.restart_factor: .*integer.*found 1.5"),
            ({"scheduler": {"restart_factor": "2"}}, "scheduler.restart_factor: .*integer, found '2'"),
            ({"scheduler": {"type": "linear"}}, "scheduler.type: .*found 'linear'"),
            ({"normalization": "none"}, "normalization: .*'pooled' or 'client', found 'none'"),
            ({"name": "a/b"}, "name: .*found 'a/b'"),
            ({"clients": [{"name": "../a", "dataset": "x/a"}]}, "clients.0.name: .*found '../a'"),
            ({"clients": [{"name": "a", "dataset": ""}]}, "clients.0.dataset: .*at least 1 character"),
            ({"clients": [{"dataset": "x/a"}]}, "clients.0.name: Field required"),
            ({"clients": LEAST["clients"] * 2}, "clients: client names must differ, found twice: a, b"),
            ({"clients": []}, r"exactly one of \[\[clients\]\] and \[partition\]"),
            ({"partition": SHARED["partition"]}, r"exactly one of \[\[clients\]\] and \[partition\]"),
            ({"federation": {"min_updates": 3}}, "federation.min_updates 3 with 2 client"),
            ({"federation": {"engine": "ray", "workers": 0}}, "federation.workers must be at least 1 with the ray"),
            ({"contract": {"cameras": []}}, "contract.cameras: .*at least 1 item"),
            ({"federation": {"wire": "int8"}, "training": {"adapter": "lora"}}, "federation.wire int8 with adapters"),
            ({"federation": {"wire_down": "bf16"}}, "federation.wire_down bf16 needs steps in return"),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_a_wrong_setting_is_told_in_one_line(self, changes: dict, said: str) -> None:
        with pytest.raises(SettingsError, match=said) as found:
            parse(**changes)
        assert "\n" not in str(found.value)

    def test_all_faults_are_told_at_once(self) -> None:
        with pytest.raises(SettingsError, match=r"rounds: .*; seed: .*; training.lr: "):
            parse(rounds=0, seed=-1, training={"lr": -1})

    def test_a_partition_index_must_exist(self) -> None:
        client = {"name": "a", "dataset": "x/a", "partition_index": 2, "partition_count": 2}
        with pytest.raises(SettingsError, match=r"clients.0: partition_index 2 must be below partition_count 2"):
            parse(clients=[client])

    def test_a_file_that_is_missing_or_no_toml(self, tmp_path: Path) -> None:
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


class TestOverrides:
    def test_they_replace_what_the_file_says(self) -> None:
        demo = ROOT / "deployments/sessions/demo.toml"
        session = load_session(demo, {"rounds": 7, "training.lr": 3e-4, "scheduler.type": "reduce_on_plateau"})
        assert (session.rounds, session.training.lr, session.scheduler.type) == (7, 3e-4, "reduce_on_plateau")
        assert session.training.batch_size == load_session(demo).training.batch_size

    def test_values_given_are_not_changed(self) -> None:
        values = {"training": {"lr": 1.0}}
        assert apply_overrides(values, {"training.lr": 2.0}) == {"training": {"lr": 2.0}}
        assert values == {"training": {"lr": 1.0}}

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ({"training.speed": 1}, "training.speed: unknown setting"),
            ({"speed": 1}, "speed: unknown setting"),
            ({"name.first": 1}, "name.first: name is a str, not a table"),
            ({"clients.0.name": "x"}, "clients.0.name: clients is a list, not a table"),
            ({"rounds": "x"}, "rounds: .*found 'x'"),
        ],
    )
    def test_what_does_not_exist_is_refused(self, override: dict, said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            load_session(ROOT / "deployments/sessions/demo.toml", override)

    def test_steps_replace_epochs(self) -> None:
        assert parse().training.local_epochs == 1
        steps = parse(training={"local_steps": 20}).training
        assert (steps.local_steps, steps.local_epochs) == (20, None)
        with pytest.raises(SettingsError, match="exactly one of local_steps and local_epochs"):
            parse(training={"local_epochs": 2, "local_steps": 2})


class TestMembers:
    def test_clients_are_members(self) -> None:
        assert parse().members() == parse().clients

    def test_nodes_bring_their_own_data(self) -> None:
        rules = {"engine": "deployment", "nodes": ["b", "a"]}
        session = parse(clients=[], federation=rules)
        assert (session.members(), session.client_names()) == ((), ("b", "a"))
        assert parse(clients=[], federation={"engine": "deployment"}).client_names() == ()
        assert Path(session.at(Path("/x")).federation.server) == Path("~/.zk0/server").expanduser().resolve()
        assert session.at(Path("/x")).federation.nodes == ("b", "a")
        with pytest.raises(SettingsError, match=r"leave \[\[clients\]\] and \[partition\] out"):
            parse(federation=rules)
        with pytest.raises(SettingsError, match=r"min_updates 3 with 2 client"):
            parse(clients=[], federation={**rules, "min_updates": 3})

    def test_a_client_may_come_late(self) -> None:
        clients = [{"name": n, "dataset": f"local:{n}", "from_round": r} for n, r in (("a", 1), ("b", 1), ("c", 3))]
        session = parse(clients=clients)
        assert (session.starters(), session.client_names()) == (("a", "b"), ("a", "b", "c"))
        assert [session.is_due("c", number) for number in (1, 2, 3, 4)] == [False, False, True, True]
        assert session.is_due("whoever", 1)
        assert session.may_grow()
        assert not parse().may_grow()
        with pytest.raises(SettingsError, match=r"min_updates 2 with 1 client\(s\) in round 1"):
            parse(clients=clients[1:])

    def test_nodes_may_come_late_where_none_are_named(self) -> None:
        for rules, grows in (({}, True), ({"nodes": ["a", "b"]}, False), ({"newcomer_seconds": 0}, False)):
            assert parse(clients=[], federation={"engine": "deployment", **rules}).may_grow() is grows

    def test_a_partition_has_a_member_for_each_share(self) -> None:
        session = parse_session(SHARED | {"evaluation": LEAST["evaluation"]}, "here")
        found = [(m.name, m.dataset, m.partition_index, m.partition_count) for m in session.members()]
        assert found == [(f"client_{i}", "x/shared", i, 3) for i in range(3)]

    def test_a_partition_may_judge_itself(self) -> None:
        session = parse_session(SHARED, "here")
        assert [(s.dataset, s.last_episodes) for s in session.judges()] == [("x/shared", 5)]


def test_relative_folders_are_taken_from_a_base(tmp_path: Path) -> None:
    clients = [{"name": "a", "dataset": "local:data/a"}, {"name": "b", "dataset": "local:/data/b"}]
    clients += [{"name": "c", "dataset": "hf:user/c"}, {"name": "d", "dataset": "sim:lift-red"}]
    judges = [{"dataset": "local:../judge"}, {"dataset": "user/judge"}, {"dataset": "local:~/judge"}]
    values = {"clients": clients, "evaluation": {"datasets": judges}, "output_dir": "out", "cache_dir": "~/cache"}
    moved = parse_session(values, "here").at(tmp_path / "base")
    home = Path.home()
    assert [c.dataset for c in moved.clients] == [
        f"local:{tmp_path}/base/data/a", "local:/data/b", "hf:user/c", "sim:lift-red",
    ]  # fmt: skip
    assert [s.dataset for s in moved.evaluation.datasets] == [
        f"local:{tmp_path}/judge", "user/judge", f"local:{home}/judge",
    ]  # fmt: skip
    assert (moved.output_dir, moved.cache_dir) == (f"{tmp_path}/base/out", f"{home}/cache")
    assert moved.at(Path("/elsewhere")) == moved
    shared = parse_session(SHARED | {"partition": {"dataset": "local:x", "clients": 2}}, "here").at(tmp_path)
    assert {m.dataset for m in shared.members()} == {f"local:{tmp_path}/x"}


class TestFiles:
    @pytest.mark.parametrize("file", sorted((ROOT / "deployments/sessions").glob("*.toml")), ids=lambda f: f.stem)
    def test_every_session_file_is_one(self, file: Path) -> None:
        session = load_session(file)
        assert session.name == file.stem
        assert len(session.members()) >= session.federation.min_updates or session.federation.engine == "deployment"
        assert session.judges()

    @pytest.mark.parametrize("file", sorted((ROOT / "deployments/sessions").glob("*.toml")), ids=lambda f: f.stem)
    def test_what_is_written_down_is_the_session(self, file: Path) -> None:
        import tomli_w

        session = load_session(file)
        text = tomli_w.dumps(toml_values(session))
        assert parse_session(tomllib.loads(text), "again") == session

    def test_the_files_that_people_are_told_of_are_there(self) -> None:
        names = {f.stem for f in (ROOT / "deployments/sessions").glob("*.toml")}
        assert {"demo", "so100", "shared"} <= names


class TestPlan:
    def test_its_digest_sees_every_field(self) -> None:
        session = parse()
        recipe = {"path": "tiny", "cameras": ("wrist",), "joints": 6, "seed": 1}
        values = {"terms": terms_of(session, "s"), "round": 1, "client": "a", "recipe": recipe, "global_digest": "0"}
        values |= {"statistics": None, "lr": 1.0, "mu": 0.0, "training": session.training}
        plan = RoundPlan(**values, scheduler=session.scheduler)
        assert RoundPlan.model_validate_json(plan.model_dump_json()).digest() == plan.digest()
        changed = [
            {"terms": terms_of(session, "t")}, {"round": 2}, {"client": "b"}, {"global_digest": "1"}, {"lr": 2.0},
            {"mu": 0.1}, {"recipe": plan.recipe.model_copy(update={"seed": 2})},
            {"training": session.training.model_copy(update={"eps": 1e-7})},
            {"scheduler": session.scheduler.model_copy(update={"eta_min": 1e-7})}, {"wire": Wire(up="bf16")},
            {"wire": Wire(packed=True)},
        ]  # fmt: skip
        assert len({plan.model_copy(update=c).digest() for c in changed} | {plan.digest()}) == len(changed) + 1


def test_rounds_that_are_judged() -> None:
    session = parse(rounds=7, evaluation={**LEAST["evaluation"], "frequency": 3, "clients_frequency": 4})
    assert [n for n in range(8) if session.judged_after(n)] == [0, 3, 6, 7]
    assert [n for n in range(8) if session.clients_judge_after(n)] == [0, 4, 7]
    never = parse(rounds=2, evaluation={**LEAST["evaluation"], "clients_frequency": 0})
    assert not any(never.clients_judge_after(n) for n in range(3))
    assert not parse(rounds=2, data={"holdout_episodes": 0}).clients_judge_after(2)


def test_rounds_that_are_rolled_out() -> None:
    def after(**rollout: Any) -> list[int]:
        session = parse(rounds=5, rollout={"tasks": ["lift-red"]} | rollout)
        return [n for n in range(6) if session.rolled_out_after(n)]

    assert after() == [0, 5]
    assert after(base=False) == [5]
    assert after(frequency=2) == [0, 2, 4, 5]
    assert after(tasks=[]) == []
    with pytest.raises(SettingsError, match=r"rollout.seeds: 3 seeds, 2 of them different"):
        parse(rollout={"seeds": [1, 2, 1]})


def leaves(model: type[Record], path: str = "") -> dict[str, str]:
    """Dotted name -> field name of every setting that is no table."""
    found = {}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        tables = [k for k in kinds if isinstance(k, type) and issubclass(k, Record)]
        found |= leaves(tables[0], f"{path}{name}.") if tables else {f"{path}{name}": name}
    return found


def readers(file: Path) -> list[ast.AST]:
    """All nodes of a file; of the settings' own, only those of functions that do more than check or move them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file != ROOT / "zk0/session.py":
        return list(ast.walk(tree))
    telling = (
        "members",
        "is_due",
        "judges",
        "terms_of",
        "judged_after",
        "clients_judge_after",
        "rolled_out_after",
        "filmed_after",
    )
    used = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in telling]
    assert len(used) == len(telling)
    return [node for function in used for node in ast.walk(function)]


def test_every_setting_has_a_reader() -> None:
    """Its name is read as an attribute somewhere outside of where it is defined."""
    read: set[str] = set()
    for room in ("zk0", "tasks", "flows"):
        for file in (ROOT / room).rglob("*.py"):
            for node in readers(file):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
    settings = leaves(Session)
    assert len(settings) > 60
    unread = sorted(dotted for dotted, name in settings.items() if name not in read)
    assert unread == []


def test_a_report_on_joining_needs_held_out_episodes() -> None:
    judged = {"datasets": [{"dataset": "local:y"}], "joining_report": True}
    values = {"partition": {"dataset": "local:x", "clients": 2}, "evaluation": judged}
    assert parse_session(values, "x").evaluation.joining_report
    with pytest.raises(SettingsError, match=r"joining_report needs data\.holdout_episodes of 1 or more"):
        parse_session(values | {"data": {"holdout_episodes": 0}}, "x")
