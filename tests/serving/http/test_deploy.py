"""What is in deploy/: the flags exist, the paths are endpoints, the metrics are told, the numbers go together."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from sites import Site

from lssgen.commands.serve import build_parser

DEPLOY = Path(__file__).parents[3] / "deploy"
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
KINDS = {one["kind"]: one for one in MANIFESTS}
POD = KINDS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_the_container_is_told_flags_that_exist() -> None:
    name, *words = CONTAINER["args"]
    assert name == "serve"
    args = build_parser().parse_args(words)
    assert (args.host, args.port) == ("0.0.0.0", CONTAINER["ports"][0]["containerPort"])
    assert POD["terminationGracePeriodSeconds"] > args.drain_seconds + 5


def test_what_the_container_reads_and_writes_is_mounted() -> None:
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in POD["volumes"]}
    args = build_parser().parse_args(CONTAINER["args"][1:])
    for path in (args.bundle[0], str(args.api_keys), str(args.state)):
        assert any(path.startswith(mount) for mount in mounts)
    assert not mounts["/state"].get("readOnly")


def test_probes_ask_for_endpoints_that_there_are(site: Site) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert site.http.get(CONTAINER[probe]["httpGet"]["path"]).status_code == 200
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/health/live", "a server that warms up is not killed"


def test_labels_and_names_go_together() -> None:
    labels = KINDS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KINDS["Service"]["spec"]["selector"] == labels == KINDS["Deployment"]["spec"]["selector"]["matchLabels"]
    assert KINDS["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == KINDS["Deployment"]["metadata"]["name"]


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_knows_every_field(kind: str, version: str) -> None:
    kubernetes_validate.validate(KINDS[kind], version, strict=True)


def test_keda_is_given_texts() -> None:
    """Its schema is in no package: of a trigger's words it says that all are texts, numbers too."""
    (trigger,) = KINDS["ScaledObject"]["spec"]["triggers"]
    assert {type(value) for value in trigger["metadata"].values()} == {str}


def test_grafana_knows_every_field_of_the_board() -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert lost(board, read) == []


def lost(given: Any, read: Any, place: str = "") -> list[str]:
    """Places of what a reader has left out or changed; what it has added is its own."""
    if isinstance(given, dict):
        return [one for key in given for one in lost(given[key], read.get(key), f"{place}/{key}")]
    if isinstance(given, list) and len(given) == len(read):
        return [one for number, value in enumerate(given) for one in lost(value, read[number], f"{place}/{number}")]
    return [] if given == read else [place]


def test_replicas_are_scaled_by_a_metric_that_is_told(site: Site) -> None:
    (trigger,) = KINDS["ScaledObject"]["spec"]["triggers"]
    (metric,) = re.findall(r"lssgen_[a-z_]+", trigger["metadata"]["query"])
    assert f"\n{metric} " in site.http.get("/metrics").text


def test_the_unit_starts_a_command_that_parses() -> None:
    unit = (DEPLOY / "lssgen.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, name, *words = shlex.split(line)
    assert (program.rpartition("/")[2], name) == ("lssgen", "serve")
    args = build_parser().parse_args(words)
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop) > getattr(args, "drain_seconds", 30)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    unit = (DEPLOY / "lssgen.service").read_text().replace("/opt/lssgen/bin/lssgen", "/bin/true")
    (tmp_path / "lssgen.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "lssgen.service"], capture_output=True, text=True, check=False
    )
    assert "lssgen.service:" not in done.stderr
