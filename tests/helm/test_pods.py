"""Properties of every pod of every set of values: restricted security, probes, time to drain, images with a version."""

import re
import shutil
from pathlib import Path

import pytest
from chart import CHART, NAMESPACE, RELEASE, Object, Pod, one, pod_of, pods_of, render, values_of
from pagewire.v1 import inference_pb2, shard_pb2

READY_SERVICE = {
    "router": inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
    "shard": shard_pb2.DESCRIPTOR.services_by_name["Shard"].full_name,
}


@pytest.fixture
def pods(objects: list[Object]) -> list[Pod]:
    return list(pods_of(objects))


def servers(pods: list[Pod]) -> list[Pod]:
    return [pod for pod in pods if pod.component in READY_SERVICE]


def test_pods_meet_the_restricted_pod_security_standard(pods: list[Pod]) -> None:
    for pod in pods:
        spec, container = pod.spec, pod.container
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"].get("runAsUser") != 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"] is True
        assert "privileged" not in context
        assert all("hostPath" not in volume for volume in spec["volumes"])


def test_nothing_is_written_to_the_image(pods: list[Pod]) -> None:
    for pod in pods:
        assert pod.container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {mount["mountPath"]: mount for mount in pod.container["volumeMounts"]}
        assert "/tmp" in mounts
        if pod.component == "shard":
            directories = [
                variable["value"]
                for variable in pod.container["env"]
                if variable["name"] in ("HOME", "HF_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")
            ]
            for directory in directories:
                path = max((path for path in mounts if directory.startswith(path)), key=len)
                assert not mounts[path].get("readOnly")


def test_mounts_and_volumes_belong_together(pods: list[Pod]) -> None:
    for pod in pods:
        claims = pod.owner["spec"].get("volumeClaimTemplates", [])
        volumes = [*(v["name"] for v in pod.spec["volumes"]), *(claim["metadata"]["name"] for claim in claims)]
        mounted = [mount["name"] for mount in pod.container["volumeMounts"]]
        assert sorted(volumes) == sorted(mounted), pod


def test_images_have_a_version(pods: list[Pod]) -> None:
    for pod in pods:
        image = pod.container["image"]
        assert re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", image)
        assert not image.endswith(":latest")


def test_probes_ask_the_plaintext_health_port(pods: list[Pod]) -> None:
    for pod in servers(pods):
        container = pod.container
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert f"--health-port={ports['health']}" in pod.arguments
        liveness = {"port": ports["health"], "service": "liveness"}
        assert container["startupProbe"]["grpc"] == liveness
        assert container["livenessProbe"]["grpc"] == liveness
        assert container["readinessProbe"]["grpc"] == {**liveness, "service": READY_SERVICE[pod.component]}


def test_no_probe_is_answered_too_late_by_its_own_period(pods: list[Pod]) -> None:
    for pod in servers(pods):
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = pod.container[name]
            assert probe["timeoutSeconds"] <= probe["periodSeconds"]


def flag(pod: Pod, name: str) -> str:
    """The value of a flag that is given once."""
    (value,) = [text.partition("=")[2] for text in pod.arguments if text.startswith(f"--{name}=")]
    return value


def test_pods_have_time_to_finish_what_runs(pods: list[Pod]) -> None:
    for pod in servers(pods):
        longest_s = float(flag(next(p for p in pods if p.component == "router"), "max-request-time"))
        before_s = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain_s = float(flag(pod, "drain-grace"))
        assert drain_s >= longest_s
        assert pod.spec["terminationGracePeriodSeconds"] > before_s + drain_s


def test_the_router_leaves_the_endpoints_before_it_stops(pods: list[Pod]) -> None:
    (router,) = [pod for pod in pods if pod.component == "router"]
    assert router.container["lifecycle"]["preStop"]["sleep"]["seconds"] > 0


def test_grace_periods_follow_the_request_time(rendered: dict[str, list[Object]]) -> None:
    router, shard = (pod_of(rendered["standby"], component) for component in ("router", "shard"))
    assert flag(router, "max-request-time") == "60"
    assert router.spec["terminationGracePeriodSeconds"] == 15 + 60 + 15
    assert shard.spec["terminationGracePeriodSeconds"] == 60 + 15


def test_clusters_without_the_sleep_action_run_a_command(helm: Path) -> None:
    objects = render(helm, "--kube-version", "1.29.0")
    assert pod_of(objects, "router").container["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}


def test_a_new_router_does_not_wait_for_the_old_one(objects: list[Object]) -> None:
    for deployment in (value for value in objects if value["kind"] == "Deployment"):
        if deployment["metadata"]["labels"]["app.kubernetes.io/component"] == "router":
            rolling = deployment["spec"]["strategy"]["rollingUpdate"]
            assert rolling == {"maxSurge": 0, "maxUnavailable": "100%"}


def test_containers_ask_for_memory_and_limit_it(pods: list[Pod]) -> None:
    for pod in pods:
        resources = pod.container["resources"]
        assert resources["requests"]["memory"]
        assert resources["requests"]["cpu"]
        assert resources["limits"]["memory"]


def test_a_shard_on_a_gpu_has_one_and_tolerates_its_taint(rendered: dict[str, list[Object]]) -> None:
    for name, resource in (
        ("gpu-hub", "nvidia.com/gpu"),
        ("pvc", "amd.com/gpu"),
        ("tensor-parallel", "nvidia.com/gpu"),
    ):
        shard = pod_of(rendered[name], "shard")
        assert shard.container["resources"]["limits"][resource] == 1
        assert {"key": resource, "operator": "Exists", "effect": "NoSchedule"} in shard.spec["tolerations"]
        assert "--device=cuda" in shard.arguments
        assert not any(text.startswith("--cpu-threads") for text in shard.arguments)
    assert pod_of(rendered["pvc"], "shard").spec["runtimeClassName"] == "amd"


def test_a_shard_on_cpus_has_as_many_threads_as_it_was_promised(rendered: dict[str, list[Object]]) -> None:
    shard = pod_of(rendered["default"], "shard")
    assert "--cpu-threads=$(CPU_REQUEST)" in shard.arguments
    (source,) = [variable["valueFrom"] for variable in shard.container["env"] if variable["name"] == "CPU_REQUEST"]
    assert source["resourceFieldRef"] == {"containerName": "shard", "resource": "requests.cpu", "divisor": "1"}


def test_without_a_cpu_request_the_shard_chooses_its_threads(helm: Path) -> None:
    shard = pod_of(render(helm, "--set-json", 'shard.resources={"requests": {"cpu": null}}'), "shard")
    assert "cpu" not in shard.container["resources"]["requests"]
    assert not [text for text in shard.arguments if "CPU_REQUEST" in text], "a request that is not there counts as 0"
    assert "CPU_REQUEST" not in [variable["name"] for variable in shard.container["env"]]


def test_a_new_version_of_the_chart_alone_restarts_nothing(helm: Path, tmp_path: Path) -> None:
    newer = tmp_path / "pagewire"
    shutil.copytree(CHART, newer)
    manifest = newer / "Chart.yaml"
    manifest.write_text(re.sub(r"(?m)^version: .*$", "version: 9.9.9", manifest.read_text()))
    before, after = render(helm), render(helm, chart=newer)
    assert before != after
    for component in ("router", "shard"):
        old, new = pod_of(before, component), pod_of(after, component)
        assert (old.metadata, old.spec) == (new.metadata, new.spec)


def test_pods_take_what_operators_add(rendered: dict[str, list[Object]]) -> None:
    for component in ("router", "shard"):
        pod = pod_of(rendered["scheduling"], component)
        assert pod.arguments[-1] == "--log-level=debug"
        assert {"name": "GRPC_VERBOSITY", "value": "error"} in pod.container["env"]
        assert {"name": "scratch", "mountPath": "/scratch"} in pod.container["volumeMounts"]
        assert {"name": "scratch", "emptyDir": {}} in pod.spec["volumes"]
        assert pod.metadata["annotations"]["example.com/owner"] == "inference"
        assert pod.labels["tier"] == "serving"
        assert pod.spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        assert pod.spec["tolerations"][0]["key"] == "dedicated"
        assert pod.spec["priorityClassName"] == "inference"
        assert "podAntiAffinity" in pod.spec["affinity"]
        (spread,) = pod.spec["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == component


def test_labels_of_ones_own_cannot_break_selectors(helm: Path) -> None:
    label = "router.podLabels.app\\.kubernetes\\.io/component=other"
    objects = render(helm, "--set", label)
    assert pod_of(objects, "router").component == "router"


def test_user_ids_may_be_left_to_the_platform(rendered: dict[str, list[Object]]) -> None:
    for pod in pods_of(rendered["openshift"]):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod.spec["securityContext"].keys()


def test_evictions_take_one_shard_at_a_time(rendered: dict[str, list[Object]]) -> None:
    budget = one(rendered["default"], "PodDisruptionBudget", "pagewire-shard")
    assert budget["spec"]["maxUnavailable"] == 1


def test_the_last_router_can_be_evicted_unless_a_person_wants_to_be_asked(rendered: dict[str, list[Object]]) -> None:
    assert not [
        v for v in rendered["default"] if v["kind"] == "PodDisruptionBudget" and "router" in v["metadata"]["name"]
    ]
    budget = one(rendered["standby"], "PodDisruptionBudget", "pagewire-router")["spec"]
    assert budget["minAvailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_router_looks_for_shards_where_they_are(objects: list[Object]) -> None:
    shards = [v for v in objects if v["kind"] in ("StatefulSet", "LeaderWorkerSet")]
    target = flag(pod_of(objects, "router"), "shards")
    (shard_set,) = shards
    assert target.startswith(f"dns:///{shard_set['metadata']['name']}.{NAMESPACE}.svc.")
    assert target.endswith(":50052")
    if shard_set["kind"] == "StatefulSet":
        assert shard_set["spec"]["serviceName"] == shard_set["metadata"]["name"]


def test_shards_that_load_or_drain_can_be_found(rendered: dict[str, list[Object]]) -> None:
    service = one(rendered["default"], "Service", "pagewire-shard")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


def test_clients_may_balance_by_themselves(rendered: dict[str, list[Object]]) -> None:
    headless = one(rendered["default"], "Service", "pagewire-router-headless")["spec"]
    assert headless["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in headless
    assert one(rendered["default"], "Service", "pagewire-router")["spec"]["ports"][0]["port"] == 50051


def test_names_can_be_ones_own(rendered: dict[str, list[Object]]) -> None:
    assert {pod.owner["metadata"]["name"] for pod in pods_of(rendered["openshift"])} >= {"llm-router", "llm-shard"}
    assert all(pod.spec["serviceAccountName"] == "inference" for pod in pods_of(rendered["openshift"]))
    assert not [value for value in rendered["openshift"] if value["kind"] == "ServiceAccount"]


def test_a_long_release_name_still_fits(helm: Path) -> None:
    objects = render(helm, "--values", values_of("default"), "--set", f"nameOverride={'x' * 60}")
    (shards,) = [value for value in objects if value["kind"] == "StatefulSet"]
    assert len(shards["metadata"]["name"]) <= 52
    assert shards["metadata"]["name"].startswith(RELEASE)


def test_http_has_a_port_of_its_own_and_can_be_left_out(helm: Path, rendered: dict[str, list[Object]]) -> None:
    def ports(objects: list[Object], service: str) -> dict[str, int]:
        return {port["name"]: port["port"] for port in one(objects, "Service", service)["spec"]["ports"]}

    without = render(helm, "--values", values_of("default"), "--set", "router.service.httpPort=0")
    other = render(helm, "--values", values_of("default"), "--set", "router.service.httpPort=80")
    assert ports(rendered["default"], "pagewire-router")["http"] == 8000
    assert ports(other, "pagewire-router")["http"] == 80
    assert ports(other, "pagewire-router-headless")["http"] == 8000
    assert "http" not in ports(without, "pagewire-router") | ports(without, "pagewire-router-headless")
    assert not any("--http-port" in argument for argument in pod_of(without, "router").container["args"])
