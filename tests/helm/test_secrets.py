"""Secrets are files by reference: never values of the chart, never in arguments, never in the environment."""

from pathlib import Path
from typing import Any

import pytest
from chart import CHART, Object, of_kind, pod_of, pods_of
from chart_values import leaves

SECRET_WORDS = ("password", "passwd", "secret", "token", "apikey", "api-key", "api_key", "credential", "private")
NOT_SECRET = {"--api-keys", "--max-queued-tokens", "--max-num-batched-tokens", "--max-tokens", "--api-key-file"}
"""Flags that count something, or name a file."""
MOUNT_ROOT = "/etc/pagewire/"
"""Below it lie the files of secrets."""


def secret_mounts(pod_spec: Object) -> dict[str, dict[str, str]]:
    """By path of a mount: the files in it, each with the secret's name and key."""
    volumes = {volume["name"]: volume["secret"] for volume in pod_spec["volumes"] if "secret" in volume}
    return {
        mount["mountPath"]: {
            item["path"]: f"{volumes[mount['name']]['secretName']}/{item['key']}"
            for item in volumes[mount["name"]]["items"]
        }
        for mount in pod_spec["containers"][0]["volumeMounts"]
        if mount["name"] in volumes
    }


def config_map_files(pod_spec: Object) -> set[str]:
    """Files that are mounted item by item from config maps below the place of secrets."""
    items = {
        volume["name"]: volume["configMap"].get("items", []) for volume in pod_spec["volumes"] if "configMap" in volume
    }
    return {
        f"{mount['mountPath']}/{item['path']}"
        for mount in pod_spec["containers"][0]["volumeMounts"]
        if mount["mountPath"].startswith(MOUNT_ROOT)
        for item in items.get(mount["name"], [])
    }


def test_no_argument_holds_a_secret(objects: list[Object]) -> None:
    for pod in pods_of(objects):
        for text in pod.container.get("args", []):
            flag, _, value = text.partition("=")
            if flag not in NOT_SECRET and any(word in flag.lower() for word in SECRET_WORDS):
                raise AssertionError(f"{pod}: {text}")
            if flag in ("--api-keys", "--api-key-file") or flag.startswith(("--tls-", "--shard-tls-")):
                assert value.startswith(MOUNT_ROOT), f"{pod}: {text}"


def test_no_variable_holds_a_secret(objects: list[Object]) -> None:
    for pod in pods_of(objects):
        assert "envFrom" not in pod.container
        for variable in pod.container.get("env", []):
            assert "secretKeyRef" not in variable.get("valueFrom", {}), f"{pod}: {variable}"
            if any(word in variable["name"].lower() for word in SECRET_WORDS):
                assert variable["name"].endswith("_PATH")
                assert variable["value"].startswith(MOUNT_ROOT)


def test_the_chart_makes_no_secrets(objects: list[Object]) -> None:
    assert not of_kind(objects, "Secret")


def test_values_have_no_place_for_a_secret() -> None:
    for path, value in leaves(CHART / "values.yaml"):
        if any(word in path[-1].lower() for word in ("password", "apikey", "credential")):
            raise AssertionError(".".join(path))
        # Names of secrets, and of keys in them.
        if any("secret" in part.lower() for part in path):
            assert value in ("", [], "token", "key", "keys", "ca.crt"), ".".join(path)


def test_secrets_are_mounted_read_only_and_key_by_key(objects: list[Object]) -> None:
    for pod in pods_of(objects):
        volumes = {volume["name"]: volume["secret"] for volume in pod.spec["volumes"] if "secret" in volume}
        for mount in pod.container["volumeMounts"]:
            if mount["name"] in volumes:
                assert mount["readOnly"] is True
                assert "subPath" not in mount, "a file mounted by subPath is never updated"
                assert volumes[mount["name"]]["items"]
                assert volumes[mount["name"]]["defaultMode"] == 0o440


def test_flags_name_files_that_are_mounted(objects: list[Object]) -> None:
    for pod in pods_of(objects):
        files = {f"{path}/{name}" for path, names in secret_mounts(pod.spec).items() for name in names}
        files |= config_map_files(pod.spec)
        named = {text.partition("=")[2] for text in pod.container.get("args", []) if f"={MOUNT_ROOT}" in text}
        named |= {v["value"] for v in pod.container.get("env", []) if v.get("value", "").startswith(MOUNT_ROOT)}
        assert named <= files, pod
        # ca.crt of the shards' secret is there for those that ask routers for certificates.
        assert {file for file in files - named if not file.endswith("/ca.crt")} == set(), pod


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (
            "router",
            {
                "/etc/pagewire/tls": {"tls.crt": "router-tls/tls.crt", "tls.key": "router-tls/tls.key"},
                "/etc/pagewire/client-ca": {"ca.crt": "client-ca/root.pem"},
                "/etc/pagewire/shard-ca": {"ca.crt": "shard-tls/ca.crt"},
                "/etc/pagewire/shard-tls": {
                    "tls.crt": "router-to-shard-tls/tls.crt",
                    "tls.key": "router-to-shard-tls/tls.key",
                },
                "/etc/pagewire/api-keys": {"keys": "api-keys/keys"},
            },
        ),
        (
            "shard",
            {
                "/etc/pagewire/tls": {
                    "tls.crt": "shard-tls/tls.crt",
                    "tls.key": "shard-tls/tls.key",
                    "ca.crt": "shard-tls/ca.crt",
                }
            },
        ),
        (
            "test",
            {
                "/etc/pagewire/ca": {"ca.crt": "router-tls/ca.crt"},
                "/etc/pagewire/tls": {"tls.crt": "test-tls/tls.crt", "tls.key": "test-tls/tls.key"},
                "/etc/pagewire/api-key": {"key": "test-key/key"},
            },
        ),
    ],
    ids=["router", "shard", "test"],
)
def test_each_pod_gets_the_secrets_it_needs(
    rendered: dict[str, list[Object]], component: str, expected: dict[str, Any]
) -> None:
    assert secret_mounts(pod_of(rendered["secure"], component).spec) == expected


def test_the_hubs_token_is_a_file(rendered: dict[str, list[Object]]) -> None:
    shard = pod_of(rendered["gpu-hub"], "shard")
    assert secret_mounts(shard.spec) == {"/etc/pagewire/hub": {"token": "hub-token/token"}}
    assert {"name": "HF_TOKEN_PATH", "value": "/etc/pagewire/hub/token"} in shard.container["env"]


def test_helm_test_is_left_out_where_it_could_not_pass(rendered: dict[str, list[Object]]) -> None:
    assert not of_kind(rendered["router-tls"], "Pod")
    assert of_kind(rendered["secure"], "Pod")


def test_templates_never_read_secrets_of_the_cluster() -> None:
    for path in Path(CHART / "templates").rglob("*"):
        if path.is_file():
            assert "lookup " not in path.read_text()
