"""The example files of config/container, checked against the daemon and the Dockerfile."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from tests.daemon_process import REPOSITORY
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint, VsockEndpoint
from vsockproxy.config.environment import environment_config
from vsockproxy.config.settings import Config

CONFIG: Final = REPOSITORY / "config" / "container"
PODS: Final = sorted(CONFIG.glob("sidecar-*.yaml"))
VSOCK: Final = CONFIG / "sidecar-vsock.yaml"
MUX: Final = CONFIG / "sidecar-mux.yaml"


def read(file: Path) -> Any:
    return YAML(typ="safe", pure=True).load(file.read_text())


def sidecar(file: Path) -> dict[str, Any]:
    [container] = read(file)["spec"]["initContainers"]
    return dict(container)


def config_of(file: Path) -> Config:
    return environment_config({entry["name"]: entry["value"] for entry in sidecar(file)["env"]})


def service() -> dict[str, Any]:
    return dict(read(CONFIG / "compose.yaml")["services"]["vsockproxy"])


def port_of(config: Config) -> object:
    [metrics] = config.metrics
    assert isinstance(metrics, TcpEndpoint)
    return metrics.port


@pytest.mark.parametrize("file", PODS, ids=lambda file: file.name)
def test_a_pods_probes_use_paths_that_the_metrics_listener_serves(file: Path) -> None:
    container = sidecar(file)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["metrics"] == port_of(config_of(file))
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in PATHS}
    assert probes == {kind: {"path": path, "port": "metrics"} for kind, path in PATHS.items()}
    admin = (REPOSITORY / "vsockproxy" / "admin" / "probes.py").read_text()
    assert all(f'Route("{path}"' in admin for path in PATHS.values())


PATHS: Final = {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}


@pytest.mark.parametrize("file", PODS, ids=lambda file: file.name)
def test_a_pods_grace_period_is_longer_than_the_drain_and_its_memory_is_limited(file: Path) -> None:
    grace = read(file)["spec"]["terminationGracePeriodSeconds"]
    assert all(route.policy.drain_timeout < grace for route in config_of(file).routes)
    container = sidecar(file)
    assert container["resources"]["limits"]["memory"]
    assert container["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_only_the_pod_with_a_vsock_target_has_the_seccomp_profile() -> None:
    kinds = {file: sidecar(file)["securityContext"]["seccompProfile"] for file in PODS}
    assert kinds == {
        MUX: {"type": "RuntimeDefault"},
        VSOCK: {"type": "Localhost", "localhostProfile": "profiles/seccomp-vsock.json"},
    }
    assert isinstance(config_of(MUX).routes[0].target, MuxEndpoint)
    assert isinstance(config_of(VSOCK).routes[0].target, VsockEndpoint)


def test_the_vmms_socket_is_in_a_volume_of_both_containers() -> None:
    target = config_of(MUX).routes[0].target
    assert isinstance(target, MuxEndpoint)
    [vmm] = read(MUX)["spec"]["containers"]
    assert vmm["volumeMounts"] == sidecar(MUX)["volumeMounts"]
    assert target.path.startswith(vmm["volumeMounts"][0]["mountPath"] + "/")
    assert f"USER {vmm['securityContext']['runAsUser']}:" in dockerfile()


def dockerfile() -> str:
    return (REPOSITORY / "Dockerfile").read_text()


def test_the_compose_file_publishes_the_ports_of_its_routes() -> None:
    environ: Mapping[str, str] = service()["environment"]
    config = environment_config(environ)
    published = {int(entry.rpartition(":")[2]) for entry in service()["ports"]}
    assert {getattr(route.listen, "port", None) for route in config.routes} == published
    assert port_of(config) == 9490
    grace = float(re.fullmatch(r"(\d+)s", service()["stop_grace_period"])[1])  # type: ignore[index]  # fails as well when it is None
    assert all(route.policy.drain_timeout < grace for route in config.routes)


def test_the_compose_files_paths_lead_to_the_profile_and_the_dockerfile() -> None:
    [profile] = [line for line in service()["security_opt"] if line.startswith("seccomp=")]
    assert json.loads((CONFIG / profile.removeprefix("seccomp=")).read_text())["syscalls"]
    assert (CONFIG / service()["build"] / "Dockerfile").samefile(REPOSITORY / "Dockerfile")


def test_every_rule_of_the_profile_has_a_comment_and_no_call_is_listed_twice() -> None:
    rules = json.loads((CONFIG / "seccomp-vsock.json").read_text())["syscalls"]
    assert all(rule["comment"] for rule in rules)
    names = [name for rule in rules for name in rule["names"] if name != "socket"]
    assert len(names) == len(set(names))
