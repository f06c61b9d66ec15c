"""What the dashboard, the alerts and the docs say of metrics is what the table says."""

import json
import re
from typing import get_args

import pytest
import yaml

from schemas.metrics import LABELS, Metric, Outcome
from tests.documents import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/svdllm.json").read_bytes())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text("utf-8"))
RAYS = {"SessionName", "NodeAddress", "WorkerId"}  # labels that Ray adds
TABLE = {f"ray_{metric.metric}": metric for metric in Metric}
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = [
    *((target["expr"], target["legendFormat"]) for target in TARGETS),
    *((rule["expr"], json.dumps(rule["annotations"])) for rule in RULES),
    *((one["query"], "") for one in DASHBOARD["templating"]["list"] if one["type"] == "query"),
]


def names(query: str) -> set[str]:
    return set(re.findall(r"\w*svdllm_\w+", query))


@pytest.mark.parametrize(("query", "text"), QUERIES)
def test_dashboard_and_alerts_ask_for_what_there_is(query: str, text: str) -> None:
    used = names(query)
    assert used
    assert used <= TABLE.keys()
    for name, matchers in re.findall(r"(ray_svdllm_\w+)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in {*TABLE[name].labels, *RAYS}
            assert label != "outcome" or value in get_args(Outcome)
    there = {label for name in used for label in TABLE[name].labels} | RAYS
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
    assert {label for group in grouped for label in group.split(", ")} <= there
    assert set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", text)) <= there
    for name in re.findall(r"(?:rate|increase)\((ray_svdllm_\w+)", query):
        assert TABLE[name].kind == "counter"


def test_what_is_compared_with_earlier_is_of_one_session() -> None:
    """Counters of a head that was replaced begin anew; their sum over all would hide a failure."""
    compared = [rule for rule in RULES if "offset" in rule["expr"]]
    assert len(compared) >= 2
    for rule in compared:
        grouped = re.findall(r"\b(?:sum|max)\b *(by \(SessionName)?", rule["expr"])
        assert grouped
        assert all(grouped), rule["alert"]


def test_every_metric_is_on_the_dashboard() -> None:
    assert set().union(*(names(target["expr"]) for target in TARGETS)) == TABLE.keys()


def test_every_failure_has_an_alert() -> None:
    alerted = set().union(*(names(rule["expr"]) for rule in RULES))
    failures = (Metric.RETRIES, Metric.LOST_WORKERS, Metric.QUARANTINED, Metric.FALLBACKS)
    nightly = (Metric.NIGHTLY_CHECKPOINTS, Metric.NIGHTLY_SUCCESS)
    for metric in (*failures, *nightly, Metric.STAGE_PROGRESS, Metric.GPU_ALLOCATED):
        assert f"ray_{metric.metric}" in alerted
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in RULES)
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_docs_have_the_table() -> None:
    rows = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for metric in Metric:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.metric}` | {metric.kind} | {labels} | {metric.description} |")
    listed = [f"- `{label}`: {values}" for label, values in LABELS.items()]
    text = (ROOT / "docs/metrics.md").read_text("utf-8")
    assert "\n".join(rows) in text
    assert "\n".join(listed) in text
