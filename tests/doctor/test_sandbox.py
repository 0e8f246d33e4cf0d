"""The judgement of the process on machines that are only files."""

from pathlib import Path

from tests.doctor.canned_machine import CONFINED, HOST, machine_tree, routes
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding
from vsockproxy.doctor.machine import Machine, read_machine
from vsockproxy.doctor.sandbox import judge_sandbox


def sandbox_findings(machine: Machine, config: Config | None = None) -> dict[str, Finding]:
    return {finding.subject: finding for finding in judge_sandbox(machine, config)}


def test_a_listener_on_a_low_port_without_the_capability_is_a_problem(tmp_path: Path) -> None:
    config = routes("443", "tcp:8443", "vsock::22", "tcp:8022", "8080", "tcp:8081")
    found = sandbox_findings(read_machine(machine_tree(tmp_path, HOST)), config)["low ports"]
    assert found.level == "problem"
    assert "tcp:443, vsock:any:22: " in found.text
    capable = HOST | {"proc/self/status": "CapEff:\t0000000000000400\n"}
    assert sandbox_findings(read_machine(machine_tree(tmp_path, capable)), config)[
        "low ports"
    ].level == ("ok")


def test_a_low_port_above_the_sysctl_is_not_a_problem(tmp_path: Path) -> None:
    files = HOST | {"proc/sys/net/ipv4/ip_unprivileged_port_start": "0\n"}
    found = sandbox_findings(read_machine(machine_tree(tmp_path, files)), routes("443", "tcp:8443"))
    assert found["low ports"].level == "ok"


def test_fewer_descriptors_than_max_connections_needs_is_a_problem(tmp_path: Path) -> None:
    files = HOST | {"proc/self/limits": "Max open files            1024     2048     files\n"}
    machine = read_machine(machine_tree(tmp_path, files))
    config = routes("8080", "tcp:81", limits={"max_connections": 5000})
    found = sandbox_findings(machine, config)["descriptors"]
    assert found.level == "problem"
    assert "992 connections" in found.text
    assert "LimitNOFILE=10128" in found.remedy
    assert sandbox_findings(machine)["descriptors"].level == "note"


def test_a_sandbox_is_noted(tmp_path: Path) -> None:
    found = sandbox_findings(read_machine(machine_tree(tmp_path, HOST | CONFINED)))["sandbox"]
    assert "seccomp" in found.text
    assert "privileges" in found.text
