"""The objects of each way of running the chart: groups, models, autoscaling, tracing, monitoring."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from chart import CHART, NAMESPACE, Object, of_kind, one, pod_of, render


def arguments(objects: list[Object], component: str) -> dict[str, str]:
    """The flags of a component's pod, by name."""
    return {name: value for name, _, value in (text.partition("=") for text in pod_of(objects, component).arguments)}


def environment(objects: list[Object], component: str) -> dict[str, str]:
    """The plain variables of a component's pod."""
    variables = pod_of(objects, component).container.get("env", [])
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}


def test_groups_of_one_shard_are_a_stateful_set(rendered: dict[str, list[Object]]) -> None:
    (shards,) = of_kind(rendered["scheduling"], "StatefulSet")
    assert shards["spec"]["replicas"] == 3
    assert shards["spec"]["podManagementPolicy"] == "Parallel"
    assert arguments(rendered["scheduling"], "shard")["--group-id"] == "$(POD_NAME)"


def test_groups_of_several_shards_are_a_leader_worker_set(rendered: dict[str, list[Object]]) -> None:
    objects = rendered["tensor-parallel"]
    (groups,) = of_kind(objects, "LeaderWorkerSet")
    spec = groups["spec"]
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (2, 4)
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert spec["networkConfig"] == {"subdomainPolicy": "Shared"}
    annotations = groups["metadata"]["annotations"]
    assert annotations == {"leaderworkerset.sigs.k8s.io/exclusive-topology": "topology.kubernetes.io/rack"}
    assert not of_kind(objects, "StatefulSet")
    # Its controller makes a headless service of the same name.
    assert groups["metadata"]["name"] not in {service["metadata"]["name"] for service in of_kind(objects, "Service")}


def test_ranks_meet_at_their_leader(rendered: dict[str, list[Object]]) -> None:
    flags = arguments(rendered["tensor-parallel"], "shard")
    assert flags["--tp-size"] == "4"
    assert flags["--tp-rank"] == "$(WORKER_INDEX)"
    assert flags["--rendezvous"] == "$(LWS_LEADER_ADDRESS):29500"
    assert flags["--group-id"].endswith("-shard-$(GROUP_INDEX)")
    variables = {v["name"]: v for v in pod_of(rendered["tensor-parallel"], "shard").container["env"]}
    for name, label in (("GROUP_INDEX", "group-index"), ("WORKER_INDEX", "worker-index")):
        field = variables[name]["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == f"metadata.labels['leaderworkerset.sigs.k8s.io/{label}']"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("default", "demo"),
        ("gpu-hub", "meta-llama/Llama-3.1-8B-Instruct"),
        ("pvc", "/models/qwen/Qwen3-8B"),
        ("model-image", "/models/model"),
    ],
)
def test_the_model_comes_from_where_the_values_say(rendered: dict[str, list[Object]], name: str, model: str) -> None:
    assert arguments(rendered[name], "shard")["--model"] == model


def test_models_on_volumes_are_mounted_read_only(rendered: dict[str, list[Object]]) -> None:
    for name in ("pvc", "model-image"):
        pod = pod_of(rendered[name], "shard")
        assert {"name": "model", "mountPath": "/models", "readOnly": True} in pod.container["volumeMounts"]
        assert environment(rendered[name], "shard")["HF_HUB_OFFLINE"] == "1"
    volumes = {volume["name"]: volume for volume in pod_of(rendered["model-image"], "shard").spec["volumes"]}
    assert volumes["model"]["image"]["reference"].startswith("registry.example.com/models/qwen3@sha256:")


def test_downloads_can_outlive_a_pod(rendered: dict[str, list[Object]]) -> None:
    (shards,) = of_kind(rendered["gpu-hub"], "StatefulSet")
    (claim,) = shards["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "100Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    shared = {volume["name"]: volume for volume in pod_of(rendered["tensor-parallel"], "shard").spec["volumes"]}
    assert shared["model-cache"]["persistentVolumeClaim"]["claimName"] == "hub-cache"


def test_an_autoscaler_owns_the_number_of_groups(rendered: dict[str, list[Object]]) -> None:
    for name in ("hpa", "keda", "keda-tensor-parallel"):
        (groups,) = [value for value in rendered[name] if value["kind"] in ("StatefulSet", "LeaderWorkerSet")]
        assert "replicas" not in groups["spec"]
        (scaler,) = [v for v in rendered[name] if v["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"]) == (groups["apiVersion"], groups["kind"])
        assert target["name"] == groups["metadata"]["name"]


def test_the_autoscaler_looks_at_queued_tokens_and_time_to_first_token(rendered: dict[str, list[Object]]) -> None:
    (scaler,) = of_kind(rendered["hpa"], "HorizontalPodAutoscaler")
    tokens, first_token = (metric["object"] for metric in scaler["spec"]["metrics"])
    assert tokens["metric"]["name"] == "pagewire_group_tokens_queued"
    assert tokens["target"] == {"type": "AverageValue", "averageValue": "4000000"}
    assert first_token["target"] == {"type": "Value", "value": "2"}
    services = {service["metadata"]["name"] for service in of_kind(rendered["hpa"], "Service")}
    assert tokens["describedObject"]["name"] in services


def test_keda_asks_prometheus_the_same(rendered: dict[str, list[Object]]) -> None:
    (scaler,) = of_kind(rendered["keda-tensor-parallel"], "ScaledObject")
    tokens, first_token = (trigger["metadata"] for trigger in scaler["spec"]["triggers"])
    series = f'namespace="{NAMESPACE}",service="trial-pagewire-router-headless"'
    assert tokens["query"] == f"sum(pagewire_group_tokens_queued{{{series}}})"
    assert tokens["threshold"] == "16384"
    assert f"pagewire_time_to_first_token_seconds_bucket{{{series}}}" in first_token["query"]
    assert first_token["threshold"] == "0.5"
    (scaler,) = of_kind(rendered["keda"], "ScaledObject")
    (trigger,) = scaler["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "prometheus"}


def test_without_tracing_nothing_of_it_is_set(rendered: dict[str, list[Object]]) -> None:
    for component in ("router", "shard"):
        assert not [name for name in environment(rendered["default"], component) if name.startswith("OTEL_")]


@pytest.mark.parametrize("component", ["router", "shard"])
def test_traces_name_the_pod_they_come_from(rendered: dict[str, list[Object]], component: str) -> None:
    variables = environment(rendered["collector"], component)
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.observability.svc:14317"
    assert variables["OTEL_SERVICE_NAME"] == f"pagewire-{component}"
    assert (variables["OTEL_TRACES_SAMPLER"], variables["OTEL_TRACES_SAMPLER_ARG"]) == (
        "parentbased_traceidratio",
        "0.01",
    )
    attributes = dict(pair.split("=") for pair in variables["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    assert attributes["k8s.pod.name"] == "$(POD_NAME)"
    assert attributes["k8s.namespace.name"] == "$(POD_NAMESPACE)"
    assert attributes["deployment.environment.name"] == "production"
    names = [variable["name"] for variable in pod_of(rendered["collector"], component).container["env"]]
    assert len(names) == len(set(names))
    # $(NAME) means a variable that stands before.
    assert names.index("POD_NAME") < names.index("OTEL_RESOURCE_ATTRIBUTES")


def test_a_trial_has_a_jaeger_of_its_own(rendered: dict[str, list[Object]]) -> None:
    service = one(rendered["jaeger"], "Service", "pagewire-jaeger")
    endpoint = environment(rendered["jaeger"], "router")["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert endpoint == f"http://{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local:4317"
    assert {port["port"] for port in service["spec"]["ports"]} == {4317, 16686}
    assert not [value for value in rendered["default"] if "jaeger" in value["metadata"]["name"]]


@pytest.fixture
def chart_with_files(tmp_path: Path) -> Path:
    """A copy of the chart with one dashboard and one file of rules, whose braces are not Helm's."""
    copy = tmp_path / "pagewire"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("dashboards", "rules"))
    (copy / "dashboards").mkdir()
    (copy / "rules").mkdir()
    dashboard = {"title": "overview", "panels": [{"legendFormat": "{{group}}"}]}
    (copy / "dashboards" / "overview.json").write_text(json.dumps(dashboard, indent=2))
    rules = (
        "groups:\n  - name: pagewire\n    rules:\n      - alert: NoGroup\n        expr: sum(up) < 1\n        for: 1m\n"
        '        annotations: {summary: "{{ $labels.group }} is down: {{ $value | humanize }}"}\n'
    )
    (copy / "rules" / "alerts.yaml").write_text(rules)
    return copy


def test_rules_and_dashboards_are_shipped_as_they_are(helm: Path, chart_with_files: Path) -> None:
    flags = ("--set", "metrics.prometheusRule.enabled=true,metrics.dashboards.enabled=true")
    objects = render(helm, *flags, chart=chart_with_files)
    (rule,) = of_kind(objects, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((chart_with_files / "rules" / "alerts.yaml").read_text())
    (dashboard,) = of_kind(objects, "ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    file = chart_with_files / "dashboards" / "overview.json"
    assert json.loads(dashboard["data"]["overview.json"]) == json.loads(file.read_text())


def test_a_chart_without_rules_and_dashboards_renders(helm: Path, chart_with_files: Path) -> None:
    shutil.rmtree(chart_with_files / "rules")
    shutil.rmtree(chart_with_files / "dashboards")
    flags = ("--set", "metrics.prometheusRule.enabled=true,metrics.dashboards.enabled=true")
    objects = render(helm, *flags, chart=chart_with_files)
    assert not of_kind(objects, "PrometheusRule") + of_kind(objects, "ConfigMap")


def test_every_rule_and_dashboard_of_the_chart_is_shipped(rendered: dict[str, list[Object]]) -> None:
    shipped = {name for config in of_kind(rendered["monitoring"], "ConfigMap") for name in config["data"]}
    assert shipped == {path.name for path in (CHART / "dashboards").glob("*.json")}
    assert len(of_kind(rendered["monitoring"], "PrometheusRule")) == len(list((CHART / "rules").glob("*.yaml")))


def test_router_and_shards_are_scraped(rendered: dict[str, list[Object]]) -> None:
    for kind, endpoints in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
        (monitor,) = of_kind(rendered["monitoring"], kind)
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert monitor["spec"][endpoints] == [{"port": "metrics", "path": "/metrics", "interval": "5s"}]


def test_helm_test_streams_a_completion_from_the_service(rendered: dict[str, list[Object]]) -> None:
    test = pod_of(rendered["standby"], "test")
    assert test.metadata["annotations"]["helm.sh/hook"] == "test"
    assert test.container["command"] == ["pagewire"]
    assert test.arguments[0] == "complete"
    assert f"--server=trial-pagewire-router.{NAMESPACE}.svc.cluster.local:443" in test.arguments
