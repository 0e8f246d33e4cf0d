"""Tests of the Grafana dashboard and the Prometheus rules against the exported metrics."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from tests.admin.fake_daemon import FakeDaemon
from tests.kernel.boot import require
from tests.test_metrics import PAGE, ROUTE, busy
from vsockproxy.admin.registry import Registry
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.process import Limits
from vsockproxy.stats import RouteStats

CONFIG: Final = Path(__file__).parents[2] / "config"
RULES: Final = CONFIG / "prometheus" / "rules.yaml"

Labels = dict[str, set[str]]
"""The labels of each series, by its name."""

SCRAPED: Final = {"instance", "job"}  # Prometheus adds these to every series
WORD: Final = r"[a-zA-Z_:][\w:]*"


def exported() -> Labels:
    """Return the series that Prometheus stores of a daemon with every counter above zero."""
    stats = RouteStats(ROUTE)
    busy(stats)
    registry = Registry(FakeDaemon(stats, admission=Admission(Limits(max_connections=9))))
    labels: Labels = {"up": set(SCRAPED)}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set(SCRAPED)).update(sample.labels)
    return labels


def rules() -> list[dict[str, Any]]:
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> Labels:
    """Return the recorded series; the part of a name before the first colon lists its labels."""
    return {
        rule["record"]: set(rule["record"].split(":")[0].split("_"))
        for rule in rules()
        if "record" in rule
    }


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIG / "grafana" / "vsockproxy.json").read_text())
    return found


def dashboard_queries() -> Iterator[str]:
    """Yield every query of the dashboard, with a value for each variable."""
    written = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])
    ]
    written += [note["expr"] for note in dashboard()["annotations"]["list"]]
    for query in written:
        yield re.sub(r"\$__(rate_)?interval", "1m", re.sub(r"\$(instance|route)", ".*", query))


def variable_queries() -> list[str]:
    listed = dashboard()["templating"]["list"]
    return [variable["query"]["query"] for variable in listed if variable["type"] == "query"]


def page_queries() -> list[str]:
    """Return the queries of docs/metrics.md: one for each unindented line of each block."""
    section = PAGE.read_text().split("## Queries\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)
    return [query for block in blocks for query in re.split(r"\n    (?! )", block.strip())]


def rule_queries() -> list[str]:
    return [rule["expr"] for rule in rules()]


def unknown(query: str, known: Labels) -> list[str]:
    """Return the metrics and the labels in a query that are not in ``known``."""
    bare = re.sub(r'"[^"]*"', '""', query)
    names = set(
        re.findall(rf"\b(?:vsockproxy|process|python|up|instance)(?:_\w+)?(?::{WORD})?", bare)
    )
    names = {name for name in names if name not in SCRAPED}
    wrong = [name for name in names if name not in known]
    for name, matchers in re.findall(rf"({WORD})\s*\{{([^}}]*)\}}", bare):
        for label in re.findall(r"(\w+)\s*[=!]", matchers):
            if label not in known.get(name, set()):
                wrong.append(f"{name}{{{label}}}")
    every = set().union(*(known.get(name, set()) for name in names))
    for group in re.findall(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]*)\)", bare):
        wrong += [f"({label})" for label in re.findall(r"\w+", group) if label not in every]
    if not names:
        wrong.append(f"no metric at all: {query}")
    return wrong


@pytest.mark.parametrize(
    "queries", [dashboard_queries, page_queries, rule_queries, variable_queries]
)
def test_every_query_uses_only_existing_metrics_and_labels(queries: Any) -> None:
    known = exported() | recorded()
    found = list(queries())
    assert len(found) > 1
    assert {query: wrong for query in found if (wrong := unknown(query, known))} == {}


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(vsockproxy_byte_total[1m])", ["vsockproxy_byte_total"]),
        ('vsockproxy_bytes_total{rout="web"}', ["vsockproxy_bytes_total{rout}"]),
        ("sum by (reason) (vsockproxy_bytes_total)", ["(reason)"]),
        ("vector(1)", ["no metric at all: vector(1)"]),
    ],
)
def test_a_query_with_an_unknown_metric_or_label_is_found(query: str, wrong: list[str]) -> None:
    assert unknown(query, exported()) == wrong


def test_every_metric_of_the_daemon_is_on_the_dashboard() -> None:
    ours = {name for name in exported() if name.startswith("vsockproxy_")}
    shown = set(re.findall(r"\bvsockproxy_\w+", " ".join(dashboard_queries())))
    assert {name for name in ours if not name.endswith(("_created", "_count", "_sum"))} == shown


def test_alert_texts_use_only_labels_of_their_series() -> None:
    known = exported() | recorded()
    for alert in (rule for rule in rules() if "alert" in rule):
        named = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        names = set(re.findall(WORD, alert["expr"])) & known.keys()
        assert named <= set().union(*(known[name] for name in names)), alert["alert"]


def test_a_recorded_series_has_the_labels_in_its_name() -> None:
    for rule in rules():
        for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) if "record" in rule else ():
            assert set(group.split(", ")) - {"le"} == recorded()[rule["record"]]


# ---- as Grafana and Prometheus see them ----


def test_the_dashboard_has_only_keys_that_grafana_knows() -> None:
    plugins.register_default_plugins()
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert list(_lost(dashboard(), known, "dashboard")) == []


def _lost(ours: object, known: object, place: str) -> Iterator[str]:
    """Yield the path of each value that Grafana's types do not preserve."""
    if isinstance(ours, dict) and isinstance(known, dict):
        for key, value in ours.items():
            if value is not None:
                yield from _lost(value, known.get(key), f"{place}.{key}")
    elif isinstance(ours, list) and isinstance(known, list) and len(ours) == len(known):
        for index, (one, other) in enumerate(zip(ours, known, strict=True)):
            yield from _lost(one, other, f"{place}[{index}]")
    elif ours != known:
        yield place


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert not [pair for pair in combinations(places, 2) if _overlap(*pair)]


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


def test_every_panel_has_a_description_and_uses_the_data_source_variable() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard()["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"] == chosen
            assert all(target["datasource"] == chosen for target in panel["targets"])


@pytest.fixture
def promtool() -> Any:
    require(promtool="prometheus")
    return partial(subprocess.run, cwd=RULES.parent, capture_output=True, text=True, check=False)


def test_the_rules_pass_their_promtool_tests(promtool: Any) -> None:
    done = promtool(["promtool", "test", "rules", "tests.yaml"])
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    tested = {
        case["alertname"]
        for test in YAML(typ="safe").load(RULES.parent / "tests.yaml")["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert tested == {rule["alert"] for rule in rules() if "alert" in rule}


def test_prometheus_can_parse_every_query(promtool: Any, tmp_path: Path) -> None:
    queries = [*dashboard_queries(), *page_queries()]
    listed = [{"record": f"query{number}", "expr": text} for number, text in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": listed}]}))
    done = promtool(["promtool", "check", "rules", file])
    assert done.returncode == 0, done.stdout + done.stderr
