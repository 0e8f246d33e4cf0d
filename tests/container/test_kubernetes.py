"""The manifests, held to Kubernetes' schemas, to kustomize, and to the daemon's configuration."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tests.container.test_examples import PATHS, PODS, port_of
from tests.daemon_process import REPOSITORY
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.load import load_config
from vsockproxy.config.settings import Config

FOLDER: Final = REPOSITORY / "config" / "kubernetes"
MANIFESTS: Final = (FOLDER / "namespace.yaml", FOLDER / "daemonset.yaml", *PODS)
VERSIONS: Final = ("1.29", kubernetes_validate.latest_version())
"""The oldest Kubernetes with native sidecars by default, and the newest known one."""


def read(text: str) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(text))


def daemon_set() -> dict[str, Any]:
    [manifest] = read((FOLDER / "daemonset.yaml").read_text())
    return dict(manifest)


def daemon() -> dict[str, Any]:
    [container] = daemon_set()["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture
def config() -> Config:
    return load_config(FOLDER / "config.toml")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_a_manifest_fits_kubernetes_schema_without_unknown_keys(file: Path, version: str) -> None:
    for manifest in read(file.read_text()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_key_does_not_fit_the_schema() -> None:
    manifest = daemon_set()
    manifest["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetworks"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


def test_kustomize_names_each_config_map_by_its_content_and_refers_to_it() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl 1.21 or newer is not installed")
    line = ["kubectl", "kustomize", str(FOLDER)]
    rendered = read(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    for manifest in rendered:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    maps = {each["metadata"]["name"] for each in rendered if each["kind"] == "ConfigMap"}
    [made] = [each for each in rendered if each["kind"] == "DaemonSet"]
    volumes = made["spec"]["template"]["spec"]["volumes"]
    assert {each["configMap"]["name"] for each in volumes if "configMap" in each} == maps
    assert {name.rpartition("-")[0] for name in maps} == {"vsockproxy", "vsockproxy-seccomp"}
    assert made["spec"]["template"]["spec"]["containers"][0]["image"].startswith("vsockproxy:")


def test_a_nodes_probes_use_paths_and_the_port_of_the_metrics_listener(config: Config) -> None:
    [port] = daemon()["ports"]
    assert port["containerPort"] == port["hostPort"] == port_of(config)
    probes = {kind: daemon()[f"{kind}Probe"]["httpGet"] for kind in PATHS}
    assert probes == {kind: {"path": path, "port": port["name"]} for kind, path in PATHS.items()}


def test_a_nodes_grace_period_is_longer_than_the_delay_and_the_drain(config: Config) -> None:
    grace = daemon_set()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    [drain] = {route.policy.drain_timeout for route in config.routes}
    assert config.limits.drain_delay + drain < grace


def test_the_files_of_the_configuration_are_in_volumes_of_the_container(config: Config) -> None:
    mounts = {mount["mountPath"]: mount for mount in daemon()["volumeMounts"]}
    assert isinstance(config.admin.socket, UnixEndpoint)
    assert str(Path(config.admin.socket.path).parent) in mounts
    assert all("subPath" not in mount for mount in mounts.values())
    [volume] = [
        each["name"]
        for each in daemon_set()["spec"]["template"]["spec"]["volumes"]
        if each.get("configMap") == {"name": "vsockproxy"}
    ]
    assert mounts["/etc/vsockproxy"]["name"] == volume


def test_the_profile_that_is_copied_to_the_node_is_the_one_that_the_daemon_gets() -> None:
    [copier] = daemon_set()["spec"]["template"]["spec"]["initContainers"]
    profile = Path(daemon()["securityContext"]["seccompProfile"]["localhostProfile"])
    assert f'"/node/{profile.name}"' in copier["command"][-1]
    assert profile.parent == Path("profiles")


def test_the_pod_monitor_selects_the_pods_and_their_port() -> None:
    [monitor] = read((FOLDER / "podmonitor.yaml").read_text())
    labels = daemon_set()["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    assert labels[monitor["spec"]["jobLabel"]] == "vsockproxy"
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == daemon()["ports"][0]["name"]
