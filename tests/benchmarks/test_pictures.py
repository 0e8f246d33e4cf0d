"""The dashboard and the rules: they ask for what the daemon exports, and for nothing else."""

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
from vsockproxy.admit.admission import Admission
from vsockproxy.config.settings import Limits
from vsockproxy.metrics import make_registry
from vsockproxy.stats import RouteStats

CONFIG: Final = Path(__file__).parents[2] / "config"
RULES: Final = CONFIG / "prometheus" / "rules.yaml"

Labels = dict[str, set[str]]
"""The labels of each series, by its name."""

SCRAPED: Final = {"instance", "job"}  # what Prometheus adds to every series
WORD: Final = r"[a-zA-Z_:][\w:]*"


def exported() -> Labels:
    """What Prometheus has once it has scraped a daemon of which every counter has moved."""
    stats = RouteStats(ROUTE)
    busy(stats)
    registry = make_registry(FakeDaemon(stats, admission=Admission(Limits(max_connections=9))))
    labels: Labels = {"up": set(SCRAPED)}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set(SCRAPED)).update(sample.labels)
    return labels


def rules() -> list[dict[str, Any]]:
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> Labels:
    """The series that the rules add: what stands before the first colon are their labels."""
    return {
        rule["record"]: set(rule["record"].split(":")[0].split("_"))
        for rule in rules()
        if "record" in rule
    }


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIG / "grafana" / "vsockproxy.json").read_text())
    return found


def dashboard_queries() -> Iterator[str]:
    """Every query, with a value in each variable's place."""
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
    """The queries of docs/metrics.md: each a block, or a line, of its own."""
    section = PAGE.read_text().split("## Queries\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .+\n)+", section, re.MULTILINE)
    return [query for block in blocks for query in re.split(r"\n    (?! )", block.strip())]


def rule_queries() -> list[str]:
    return [rule["expr"] for rule in rules()]


def unknown(query: str, known: Labels) -> list[str]:
    """The names in a query, and the labels of each, that do not exist."""
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
def test_every_query_asks_for_metrics_and_labels_that_exist(queries: Any) -> None:
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
def test_a_query_for_what_does_not_exist_is_noticed(query: str, wrong: list[str]) -> None:
    assert unknown(query, exported()) == wrong


def test_every_metric_of_the_daemon_is_on_the_dashboard() -> None:
    ours = {name for name in exported() if name.startswith("vsockproxy_")}
    shown = set(re.findall(r"\bvsockproxy_\w+", " ".join(dashboard_queries())))
    assert {name for name in ours if not name.endswith(("_created", "_count", "_sum"))} == shown


def test_what_alerts_say_names_labels_that_their_series_have() -> None:
    known = exported() | recorded()
    for alert in (rule for rule in rules() if "alert" in rule):
        named = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
        names = set(re.findall(WORD, alert["expr"])) & known.keys()
        assert named <= set().union(*(known[name] for name in names)), alert["alert"]


def test_a_recorded_series_has_the_labels_that_its_name_says() -> None:
    for rule in rules():
        for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) if "record" in rule else ():
            assert set(group.split(", ")) - {"le"} == recorded()[rule["record"]]


# ---- as Grafana and Prometheus see them ----


def test_the_dashboard_has_no_key_that_grafana_does_not_know() -> None:
    plugins.register_default_plugins()
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert list(_lost(dashboard(), known, "dashboard")) == []


def _lost(ours: object, known: object, place: str) -> Iterator[str]:
    """Where a value of ours did not survive being read into Grafana's own types."""
    if isinstance(ours, dict) and isinstance(known, dict):
        for key, value in ours.items():
            if value is not None:
                yield from _lost(value, known.get(key), f"{place}.{key}")
    elif isinstance(ours, list) and isinstance(known, list) and len(ours) == len(known):
        for index, (one, other) in enumerate(zip(ours, known, strict=True)):
            yield from _lost(one, other, f"{place}[{index}]")
    elif ours != known:
        yield place


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
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


def test_every_panel_says_what_it_shows_and_reads_the_chosen_data_source() -> None:
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


def test_prometheus_takes_the_rules_and_they_do_what_their_tests_say(promtool: Any) -> None:
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


def test_prometheus_can_read_every_query(promtool: Any, tmp_path: Path) -> None:
    queries = [*dashboard_queries(), *page_queries()]
    listed = [{"record": f"query{number}", "expr": text} for number, text in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": listed}]}))
    done = promtool(["promtool", "check", "rules", file])
    assert done.returncode == 0, done.stdout + done.stderr
