"""systemd units, containers and documented commands. No container engine runs here: files are read and linted."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml
from kubernetes_validate import ValidationError, validate
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app as bot
from flows.cli.main import zk0_app as cli

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = ROOT / "deployments"
UNITS = sorted((DEPLOYMENTS / "systemd").glob("*.service"))
COMPOSE = DEPLOYMENTS / "docker" / "compose.yaml"
MANIFESTS = sorted((DEPLOYMENTS / "kubernetes").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
APPS = {"zk0": cli, "zk0bot": bot}


def services() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def manifests() -> list[dict[str, Any]]:
    """Return every object of the Kubernetes manifests."""
    return [one for file in MANIFESTS for one in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def pods() -> dict[str, dict[str, Any]]:
    """Return the pod of each Deployment and StatefulSet by its name."""
    return {
        o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in manifests() if "template" in o.get("spec", {})
    }


def containers() -> list[tuple[str, dict[str, Any]]]:
    """Return every container of the manifests with the name of its pod."""
    return [(name, c) for name, pod in pods().items() for c in (*pod.get("initContainers", []), *pod["containers"])]


def directives(unit: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(unit.read_text())
    return found


def lines_of(page: Path) -> Iterator[str]:
    """Return the lines of a page's code blocks."""
    for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        yield from block.replace("\\\n", " ").splitlines()


def shell_lines() -> Iterator[tuple[str, str]]:
    """Return every shell line in docs and deployments, with the place where it is."""
    for page in PAGES:
        yield from ((page.name, line) for line in lines_of(page))
    for unit in UNITS:
        yield unit.name, directives(unit)["Service"]["ExecStart"].replace("${", "$").replace("}", "")
        for line in unit.read_text().splitlines():
            if line.startswith("#   "):
                yield unit.name, line.lstrip("# ")
    for file in (COMPOSE, DEPLOYMENTS / "nginx" / "zk0-stream.conf"):
        found = re.findall(r"^#   +(?:docker .* run --rm \w+ )?(zk0bot .*)$", file.read_text(), re.M)
        yield from ((file.name, line) for line in found)
    for file in MANIFESTS:
        found = re.findall(r"^#   kubectl .* -- (zk0bot .*)$", file.read_text(encoding="utf-8"), re.M)
        yield from ((file.name, line) for line in found)
    for name, container in containers():
        command = container.get("command", container.get("args"))
        lines = command[-1].splitlines() if command[:2] == ["sh", "-c"] else [shlex.join(command)]
        yield from ((f"pod {name}, {container['name']}", line) for line in lines)
    for name, service in services().items():
        command = service["command"]
        lines = [command] if isinstance(command, str) else command[-1].splitlines()
        yield from ((f"compose service {name}", line) for line in lines)


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Return program and arguments of each command of zk0 or Prefect, split as a shell does."""
    found = []
    for where, line in shell_lines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # prose or JSON in a code block
        part: list[str] = []
        for word in [*words, "&&"]:
            if word in ("&&", "||", "|", ";"):
                while part and (re.fullmatch(r"[A-Z0-9_]+=.*", part[0]) or part[0] == "exec"):
                    part.pop(0)
                name = part[0].rpartition("/bin/")[2] if part else ""
                if name in {*APPS, "prefect"}:
                    found.append((where, (name, *part[1:])))
                part = []
            else:
                part.append(word)
    return found


ZK0_COMMANDS = sorted({(where, line) for where, line in commands() if line[0] in APPS})


def test_there_are_commands_to_try() -> None:
    tried = {" ".join(line[:3]) for _, line in commands()}
    assert tried >= {"zk0bot server init", "zk0bot server start", "zk0bot client start", "prefect worker start"}
    assert {where for where, _ in commands()} >= {u.name for u in UNITS} | {"compose service worker", "network.md"}


@pytest.mark.parametrize(("where", "line"), ZK0_COMMANDS, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_a_command_of_zk0_parses(where: str, line: tuple[str, ...]) -> None:
    """With --help at its end, or before the `--`, a command parses its arguments and does nothing."""
    end = line.index("--") if "--" in line else len(line)
    done = CliRunner().invoke(APPS[line[0]], [*line[1:end], "--help", *line[end:]])
    assert done.exit_code == 0, f"{where}: {' '.join(line)}: {done.output}"


PREFECT_HELP = """
import contextlib, io, json, sys
from prefect.cli import app
outputs = []
for words in json.loads(sys.argv.pop()):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        sys.argv = ["prefect", *words, "--help"]
        app()
    outputs.append(out.getvalue())
print(json.dumps(outputs))
"""


@pytest.mark.slow
def test_a_command_of_prefect_parses() -> None:
    lines = sorted({line for _, line in commands() if line[0] == "prefect"})
    arguments = [list(dropwhile(lambda word: word.startswith("-"), line[1:])) for line in lines]
    words = [list(takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), line)) for line in arguments]
    done = subprocess.run([sys.executable, "-c", PREFECT_HELP, json.dumps(words)], capture_output=True, text=True)
    outputs = json.loads(done.stdout.splitlines()[-1])
    for line, text in zip(lines, outputs, strict=True):
        assert text.startswith("Usage: prefect"), line
        unknown = [w for w in line if w.startswith("--") and w.partition("=")[0] not in text]
        assert unknown == [], line


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_a_unit_restarts_its_service_and_confines_it(unit: Path) -> None:
    service = directives(unit)["Service"]
    assert service["Restart"] == "always"
    assert service["User"] == "zk0"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["UMask"]) == ("yes", "strict", "0077")
    assert int(service["LimitNOFILE"]) >= 4096
    assert int(service["TasksMax"]) > 0
    assert service["MemoryMax"].endswith("%")
    assert int(service["TimeoutStopSec"]) >= 30  # the supervisor ends its processes in order
    assert directives(unit)["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_units_as_systemd_reads_them(tmp_path: Path) -> None:
    program = tmp_path / "zk0bot"
    program.touch(0o755)
    for unit in UNITS:
        text = unit.read_text().replace("/opt/zk0/.venv/bin/zk0bot", str(program)).replace("/opt/zk0", str(ROOT))
        (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", *(str(tmp_path / u.name) for u in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True)
    mine = [line for line in (done.stdout + done.stderr).splitlines() if "zk0" in line]
    assert mine == []


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx here")
def test_the_stream_as_nginx_reads_it(tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    modules = "include /etc/nginx/modules-enabled/*.conf;"  # of Debian, whose stream module is loaded when needed
    config.write_text(f"pid {tmp_path}/pid;\n{modules}\nevents {{}}\ninclude {DEPLOYMENTS}/nginx/zk0-stream.conf;\n")
    done = subprocess.run(
        ["nginx", "-t", "-c", str(config), "-e", str(tmp_path / "errors")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_stream_forwards_by_name_and_does_not_end_tls() -> None:
    text = re.sub(r"#.*", "", (DEPLOYMENTS / "nginx" / "zk0-stream.conf").read_text())
    assert text.count("{") == text.count("}")
    assert [line for line in text.splitlines() if line.strip() and line.strip()[-1] not in "{};"] == []
    assert "ssl_preread on;" in text
    assert not re.search(r"ssl_certificate|listen .* ssl", text)
    assert re.search(r"federation\.example +127\.0\.0\.1:9092;", text)


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert steps[-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    assert workflow["permissions"] == {"contents": "read"}


def test_actions_are_named_by_their_commits() -> None:
    """A tag of an action can be moved to other code; the comment says which release the commit is."""
    lines = [line for file in (ROOT / ".github/workflows").glob("*.yml") for line in file.read_text().splitlines()]
    used = [line.strip().removeprefix("- ") for line in lines if "uses:" in line]
    assert used
    assert [line for line in used if not re.fullmatch(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


class TestContainers:
    def test_services_share_one_image_and_open_one_port(self) -> None:
        found = services()
        assert {s["image"] for s in found.values()} == {"zk0:latest"}
        opened = [p for s in found.values() for p in s.get("ports", []) if not p.startswith("127.0.0.1:")]
        assert opened == ["9092:9092"]
        for service in found.values():
            assert {"server", "prefect"} >= set(service.get("depends_on", []))
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]

    def test_sessions_run_where_the_superlink_listens(self) -> None:
        for name in ("worker", "watch"):
            assert services()[name]["network_mode"] == "service:server"
            assert "ports" not in services()[name]

    def test_tokens_come_from_the_environment(self) -> None:
        for service in services().values():
            for name, value in (service.get("environment") or {}).items():
                assert value is None or not re.search("TOKEN|KEY|SECRET", name)

    def test_volumes_are_declared_and_their_folders_are_in_the_image(self) -> None:
        declared = yaml.safe_load(COMPOSE.read_text())["volumes"].keys()
        made = (DEPLOYMENTS / "docker" / "Dockerfile").read_text()
        for service in services().values():
            for source, target, *_ in (
                v.rsplit(":", 2 if v.endswith(":ro") else 1) for v in service.get("volumes", [])
            ):
                if "$" not in source:
                    assert source in declared
                    assert target in made

    def test_the_image_is_the_one_that_the_pool_starts(self) -> None:
        pool = json.loads((DEPLOYMENTS / "pools" / "gpu-docker.json").read_text())["job_configuration"]
        image = instructions()
        assert pool["image"] == "zk0:latest"
        assert ("WORKDIR", pool["container_create_kwargs"]["working_dir"]) in image
        made = " ".join(text for name, text in image if name == "RUN")
        assert [v for v in pool["volumes"] if v.partition(":")[2] not in made] == []

    def test_the_image_copies_existing_files(self) -> None:
        image = instructions()
        (_, base), start = image[:2]
        python, version = base.removeprefix("PYTHON_IMAGE="), (ROOT / ".python-version").read_text().strip()
        assert re.fullmatch(rf"python:{re.escape(version)}\.\d+-slim-bookworm@sha256:[0-9a-f]{{64}}", python)
        assert start == ("FROM", "$PYTHON_IMAGE")
        for service in services().values():
            assert service["build"]["args"] == {"PYTHON_IMAGE": f"${{ZK0_PYTHON_IMAGE:-{python}}}"}
        assert [name for name, _ in image if name in ("USER", "CMD")] == ["USER", "CMD"]
        copied = [word for name, text in image if name == "COPY" for word in text.split()[1:-1]]
        assert copied
        assert [name for name in copied if not (ROOT / name).exists()] == []
        assert {".git", ".venv", ".env", "outputs", "*.kit"} <= set((ROOT / ".dockerignore").read_text().split())


def test_uv_is_pinned_by_the_hashes_of_the_lock_file() -> None:
    """Image and Makefile install the uv that uv.lock has, and no other one."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    (uv,) = [package for package in locked if package["name"] == "uv"]
    text = (DEPLOYMENTS / "uv.txt").read_text(encoding="utf-8")
    assert re.findall(r"^uv==(\S+)", text, re.M) == [uv["version"]]
    pinned = set(re.findall(r"--hash=(\S+)", text))
    assert pinned <= {wheel["hash"] for wheel in uv["wheels"]}
    assert {wheel["hash"] for wheel in uv["wheels"] if "manylinux" in wheel["url"]} <= pinned
    (install,) = [text for name, text in instructions() if name == "RUN" and "pip install" in text]
    assert install.endswith("--require-hashes -r deployments/uv.txt")
    assert re.findall(r"pip install .*", (ROOT / "Makefile").read_text()) == [
        "pip install --quiet --disable-pip-version-check --require-hashes -r deployments/uv.txt"
    ]


def test_the_documentation_names_targets_and_extras_that_exist() -> None:
    """`make NAME` at the start of a line, and LeRobot's extra as the project pins it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    texts = [p.read_text(encoding="utf-8") for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
    blocks = [block for text in texts for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)]
    named = {name for block in blocks for name in re.findall(r"^make ([a-z]+)", block, re.M)}
    assert {"demo", "feetech", "wheels"} <= named <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra (\w+)", makefile)) <= extras.keys()
    pinned = {name for text in texts for name in re.findall(r"lerobot\[feetech\]\S*?==[\d.]+", text)}
    assert pinned == set(extras["feetech"])


class OsvAnswers(BaseHTTPRequestHandler):
    """Answers OSV's API: one package has a known vulnerability."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
        names = [query["package"]["name"] for query in queries]
        self.asked.extend(names)
        self._send({"results": [{"vulns": [{"id": "OSV-TEST"}]} if name == "torch" else {} for name in names]})

    def do_GET(self) -> None:
        self._send({"id": "OSV-TEST", "modified": "2026-01-01T00:00:00Z", "summary": "made up", "affected": []})

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_make_audit_asks_for_all_locked_packages_and_fails_for_a_vulnerability() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OsvAnswers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = ["make", "--no-print-directory", "audit", f"OSV=http://127.0.0.1:{server.server_port}/"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode != 0
    assert "OSV-TEST" in done.stdout + done.stderr
    assert {"torch", "flwr", "prefect", "lerobot", "h11"} <= set(OsvAnswers.asked)


class TestManifests:
    """deployments/kubernetes."""

    def test_each_container_is_confined_and_limited(self) -> None:
        found = containers()
        assert {c["name"] for _, c in found} == {"prefect", "init", "server", "worker", "watch", "node"}
        for name, container in found:
            assert container["image"] == "zk0:latest"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }, name  # fmt: skip
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
        for pod in pods().values():
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["automountServiceAccountToken"] is False

    def test_what_listens_has_probes_of_its_port(self) -> None:
        for name, container in containers():
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe"):
                if ports:
                    found = container[probe].get("httpGet") or container[probe]["tcpSocket"]
                    assert found["port"] in ports, (name, probe)
            assert ports or container["name"] == "init" or "exec" in container["livenessProbe"]

    def test_prefect_needs_a_key_that_worker_and_watcher_have(self) -> None:
        names = {"prefect": "PREFECT_SERVER_API_AUTH_STRING"} | dict.fromkeys(
            ("worker", "watch"), "PREFECT_API_AUTH_STRING"
        )
        found = {c["name"]: {e["name"]: e for e in c.get("env", [])} for _, c in containers()}
        for name, variable in names.items():
            assert found[name][variable]["valueFrom"] == {
                "secretKeyRef": {"name": "prefect-auth", "key": "AUTH_STRING"}
            }, "not optional: without the secret the container does not start"

    def test_every_mounted_volume_exists(self) -> None:
        claims = {o["metadata"]["name"] for o in manifests() if o["kind"] == "PersistentVolumeClaim"}
        made = (DEPLOYMENTS / "docker" / "Dockerfile").read_text(encoding="utf-8")
        templates = {
            o["metadata"]["name"]: {t["metadata"]["name"] for t in o["spec"].get("volumeClaimTemplates", [])}
            for o in manifests()
            if "template" in o.get("spec", {})
        }
        for name, pod in pods().items():
            volumes = {v["name"]: v for v in pod.get("volumes", [])}
            assert {
                v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
            } <= claims
            for container in (*pod.get("initContainers", []), *pod["containers"]):
                for mount in container.get("volumeMounts", []):
                    assert mount["name"] in volumes.keys() | templates[name], (name, mount)
                    assert mount.get("readOnly") or mount["mountPath"] in made or mount["mountPath"] == "/dev/shm"

    def test_services_select_pods_and_only_the_gateway_is_open(self) -> None:
        labels = {
            o["spec"]["template"]["metadata"]["labels"]["app"] for o in manifests() if "template" in o.get("spec", {})
        }
        found = [o for o in manifests() if o["kind"] == "Service"]
        assert {o["spec"]["selector"]["app"] for o in found} <= labels
        opened = [o for o in found if o["spec"].get("type", "ClusterIP") != "ClusterIP"]
        assert [(o["metadata"]["name"], o["spec"]["ports"][0]["port"]) for o in opened] == [("server", 9092)]

    def test_tokens_come_from_secrets(self) -> None:
        for name, container in containers():
            for variable in container.get("env", []):
                if re.search("TOKEN|KEY|SECRET", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], name

    def test_manifests_as_kubernetes_reads_them(self) -> None:
        """No field is unknown to Kubernetes, and each has a value of its type."""
        for manifest in manifests():
            validate(manifest, desired_version="1.37", strict=True)

    def test_a_field_that_kubernetes_does_not_know_is_found(self) -> None:
        (service, *_) = [o for o in manifests() if o["kind"] == "Service"]
        with pytest.raises(ValidationError, match="prots"):
            validate(service | {"spec": service["spec"] | {"prots": []}}, desired_version="1.37", strict=True)


COMPOSE_SCHEMA = ROOT / "tests" / "support" / "compose-spec.json"
"""schema/compose-spec.json of github.com/compose-spec/compose-spec at a08f8d5 (October 2025), Apache License 2.0."""


def interpolated_composition() -> dict[str, Any]:
    """Return the composition with the default of each variable, as where none is set."""
    text = re.sub(r"^#.*\n", "", COMPOSE.read_text(encoding="utf-8"), flags=re.M)
    text = re.sub(r"\$\{[A-Z0-9_]+:-([^}]*)\}", r"\1", text)
    text = re.sub(r"\$\{PREFECT_SERVER_API_AUTH_STRING:\?[^}]+\}", "name:secret", text)
    assert "$" not in text
    return dict(yaml.safe_load(text))


def faults_of_composition(composition: dict[str, Any]) -> list[str]:
    """Return what the specification's schema does not allow."""
    schema = json.loads(COMPOSE_SCHEMA.read_text(encoding="utf-8"))
    errors = jsonschema.Draft7Validator(schema).iter_errors(composition)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


class TestComposition:
    """deployments/docker/compose.yaml."""

    def test_the_composition_is_valid_by_the_compose_specification(self) -> None:
        """No field is unknown to the specification, and each has a value of its type."""
        assert faults_of_composition(interpolated_composition()) == []

    @pytest.mark.parametrize(("field", "value"), [("prots", ["9092:9092"]), ("restart", 3), ("mem_limit", ["4g"])])
    def test_a_field_that_the_specification_does_not_allow_is_found(self, field: str, value: object) -> None:
        composition = interpolated_composition()
        composition["services"]["server"][field] = value
        assert field in str(faults_of_composition(composition))

    def test_services_name_existing_services_volumes_and_folders(self) -> None:
        """What `docker compose config` checks beyond the schema."""
        composition = interpolated_composition()
        names = composition["services"].keys()
        for name, service in composition["services"].items():
            named = [*service.get("depends_on", []), *re.findall(r"^service:(.*)", service.get("network_mode", ""))]
            assert set(named) <= names - {name}, name
            sources = [volume.split(":")[0] for volume in service.get("volumes", [])]
            assert {s for s in sources if not s.startswith(".")} <= composition["volumes"].keys(), name
            assert not ("network_mode" in service and "ports" in service), name
            context = (COMPOSE.parent / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file(), name

    def test_the_composition_as_docker_reads_it(self) -> None:
        """`config` needs no daemon; docker-compose is Docker Compose as a command of its own."""
        known = [c for c in (["docker", "compose"], ["docker-compose"]) if shutil.which(c[0])]
        texts = [subprocess.run([*c, "version"], capture_output=True, text=True).stdout for c in known]
        found = [c for c, text in zip(known, texts, strict=True) if "Docker Compose version v" in text]  # not version 1
        if not found:
            pytest.skip("no Docker Compose here")
        command = [*found[0], "-f", str(COMPOSE), "--profile", "node", "config", "--quiet"]
        keyed = {**os.environ, "PREFECT_SERVER_API_AUTH_STRING": "name:secret"}
        done = subprocess.run(command, capture_output=True, text=True, env=keyed)
        assert done.returncode == 0, done.stderr
        done = subprocess.run(
            command, capture_output=True, text=True, env=keyed | {"PREFECT_SERVER_API_AUTH_STRING": ""}
        )
        assert "whoever reaches Prefect runs code" in done.stderr

    def test_prefect_needs_a_key_that_worker_and_watcher_have(self) -> None:
        found = services()
        required = r"\$\{PREFECT_SERVER_API_AUTH_STRING:\?.+\}"
        assert re.fullmatch(required, found["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"])
        for name in ("worker", "watch"):
            assert re.fullmatch(required, found[name]["environment"]["PREFECT_API_AUTH_STRING"])

    def test_each_service_has_a_memory_limit_and_a_healthcheck(self) -> None:
        for name, service in interpolated_composition()["services"].items():
            assert re.fullmatch(r"\d+g", service["mem_limit"]), name
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
            assert service["healthcheck"]["start_period"] == "5m", name
        assert services()["worker"]["depends_on"]["prefect"] == {"condition": "service_healthy"}


def scripts() -> dict[str, str]:
    """Return the scripts of several lines that containers run, by place."""
    found = {name: s["command"][-1] for name, s in services().items() if isinstance(s["command"], list)}
    return found | {f"pod {name}, {c['name']}": c["command"][-1] for name, c in containers() if "command" in c}


def test_scripts_end_at_the_first_error() -> None:
    """Else `worker start` would create the pool without its template, once Prefect has come up."""
    several = {name: text for name, text in scripts().items() if len(text.splitlines()) > 1}
    assert several.keys() == {"worker", "pod server, worker", "pod node, node"}
    assert {text.splitlines()[0] for text in several.values()} == {"set -e"}


def test_each_watcher_names_its_session() -> None:
    """Without one it would train the tiny policy of federation.toml."""
    watchers = {where: line for where, line in commands() if line[:2] in (("zk0bot", "watch"), ("zk0bot", "serve"))}
    deployed = {where: line for where, line in watchers.items() if not where.endswith(".md")}
    assert deployed.keys() == {
        "zk0-watch.service", "zk0-serve.service", "pod server, watch", "compose service watch",
    }  # fmt: skip
    for where, line in deployed.items():
        assert line[2] == "deployments/sessions/so100-network.toml", where
        assert (ROOT / line[2]).is_file()


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    text = (DEPLOYMENTS / "docker" / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    found = [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]
    assert {name for name, _ in found} <= {"ARG", "FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    return found  # type: ignore[return-value]
