"""A stand-in for the Kubernetes API server, in memory and on loopback: enough for real helm and kubectl.

It stores objects, answers discovery and watches, and applies JSON, merge and server-side-apply patches as plain merges.
It defaults, admits, schedules and reconciles nothing; a pod has succeeded as soon as it is created, so that hooks end.
"""

import copy
import json
import queue
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml
from kube_secret import MAGIC, decode_secret

Object = dict[str, Any]
VERSION = {"major": "1", "minor": "35", "gitVersion": "v1.35.0", "platform": "linux/amd64"}
WATCH_POLL_S = 0.2

# By group and version: plural name, kind. All but namespaces are namespaced.
RESOURCES: dict[str, dict[str, str]] = {
    "v1": {
        "namespaces": "Namespace",
        "pods": "Pod",
        "services": "Service",
        "configmaps": "ConfigMap",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "persistentvolumeclaims": "PersistentVolumeClaim",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
    "monitoring.coreos.com/v1": {
        "servicemonitors": "ServiceMonitor",
        "podmonitors": "PodMonitor",
        "prometheusrules": "PrometheusRule",
    },
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
    "gateway.networking.k8s.io/v1": {
        "httproutes": "HTTPRoute",
        "grpcroutes": "GRPCRoute",
        "backendtlspolicies": "BackendTLSPolicy",
    },
    "leaderworkerset.x-k8s.io/v1": {"leaderworkersets": "LeaderWorkerSet"},
}
PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?(?:/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?)?"
)


@dataclass
class Store:
    """All objects, and who watches them."""

    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    """Objects by kind, namespace and name."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    watchers: list[tuple[str, str, "queue.Queue[Object]"]] = field(default_factory=list)
    """Kind, namespace (empty: all) and where to put events."""
    version: int = 0

    def put(self, kind: str, namespace: str, value: Object) -> Object:
        """Stores an object, new or changed."""
        with self.lock:
            self.version += 1
            metadata = value["metadata"]
            key = (kind, namespace, metadata["name"])
            old = self.objects.get(key, {}).get("metadata", {})
            metadata["uid"] = old.get("uid") or str(uuid.uuid4())
            metadata["creationTimestamp"] = old.get("creationTimestamp") or f"{datetime.now(UTC):%FT%TZ}"
            metadata["generation"] = old.get("generation", 0) + 1
            metadata["resourceVersion"] = str(self.version)
            if namespace:
                metadata["namespace"] = namespace
            if kind == "Pod":
                value["status"] = {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}
            self._tell(kind, namespace, {"type": "MODIFIED" if key in self.objects else "ADDED", "object": value})
            self.objects[key] = value
            return value

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Deletes an object that is there."""
        with self.lock:
            self.version += 1
            value = self.objects.pop((kind, namespace, name))
            self._tell(kind, namespace, {"type": "DELETED", "object": value})

    def list(self, kind: str, namespace: str, selector: str, fields: str) -> list[Object]:
        """Those whose labels and fields are as the selectors want them, of which only equality is understood."""
        wanted = dict(pair.replace("==", "=").split("=") for pair in selector.split(",") if "=" in pair)
        name = dict(pair.split("=") for pair in fields.split(",") if "=" in pair).get("metadata.name")
        with self.lock:
            return [
                value
                for (a_kind, a_namespace, a_name), value in sorted(self.objects.items())
                if a_kind == kind
                and namespace in ("", a_namespace)
                and name in (None, a_name)
                and wanted.items() <= value["metadata"].get("labels", {}).items()
            ]

    def _tell(self, kind: str, namespace: str, event: Object) -> None:
        for a_kind, a_namespace, events in self.watchers:
            if a_kind == kind and a_namespace in ("", namespace):
                events.put(copy.deepcopy(event))


def merge(base: Object, patch: Object) -> Object:
    """RFC 7396: null removes, mappings merge, everything else replaces."""
    for key, value in patch.items():
        if value is None:
            base.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


class KubeApi(ThreadingHTTPServer):
    """The server; `objects` is what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = Store()
        self.requests: list[str] = []
        """Method, path and status of all that was asked."""
        self.is_stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def kinds(self, namespace: str) -> dict[str, list[str]]:
        """Names of a namespace's objects by kind, without helm's own records."""
        found: dict[str, list[str]] = {}
        for (kind, a_namespace, name), value in sorted(self.store.objects.items()):
            if a_namespace == namespace and not value.get("type", "").startswith("helm.sh/"):
                found.setdefault(kind, []).append(name)
        return found


@contextmanager
def kube_api(*namespaces: str) -> Iterator[KubeApi]:
    """Serves until the end of the block."""
    server = KubeApi()
    for name in namespaces:
        server.store.put("Namespace", "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KubeApi

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept, not printed."""

    def _answer(self) -> None:
        url = urlparse(self.path)
        self._query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = PATH.fullmatch(url.path.rstrip("/"))
        if url.path.rstrip("/") in ("/version", "/api", "/apis"):
            self._send(200, _discovery(url.path.rstrip("/")))
        elif url.path == "/openapi/v3":
            paths = {
                _api_path(version): {"serverRelativeURL": f"/openapi/v3/{_api_path(version)}"} for version in RESOURCES
            }
            self._send(200, {"paths": paths})
        elif url.path.startswith("/openapi/v3/api"):
            self._send(200, _open_api(url.path.removeprefix("/openapi/v3/")))
        elif not match or (version := match["core"] or match["group"]) not in RESOURCES:
            self._fail(404, "NotFound", f"no {url.path}")
        elif not match["plural"]:
            self._send(200, _resource_list(version))
        elif match["plural"] not in RESOURCES[version]:
            self._fail(404, "NotFound", f"no resource {match['plural']}")
        else:
            self._serve(version, RESOURCES[version][match["plural"]], match["namespace"] or "", match["name"], body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815  the names http.server calls

    def _serve(self, version: str, kind: str, namespace: str, name: str | None, body: bytes) -> None:
        store = self.server.store
        if name is None and self.command == "GET":
            self._list(version, kind, namespace)
            return
        if name is None and self.command == "POST":
            value = self._object(body)
            if (kind, namespace, value["metadata"]["name"]) in store.objects:
                self._fail(409, "AlreadyExists", f"{kind} {value['metadata']['name']!r} already exists")
            else:
                self._send(201, value if "dryRun" in self._query else store.put(kind, namespace, value))
            return
        key = (kind, namespace, name or "")
        is_apply = "apply-patch" in self.headers.get("Content-Type", "")
        if key not in store.objects and not is_apply:
            self._fail(404, "NotFound", f"{kind} {name!r} not found")
        elif self.command == "GET":
            self._send(200, store.objects[key])
        elif self.command == "DELETE":
            store.remove(*key)
            self._send(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        else:
            is_new = key not in store.objects
            base = {} if is_new or self.command == "PUT" else copy.deepcopy(store.objects[key])
            value = merge(base, self._object(body))
            self._send(201 if is_new else 200, value if "dryRun" in self._query else store.put(kind, namespace, value))

    def _object(self, body: bytes) -> Object:
        # YAML is what server-side apply sends, and JSON is YAML.
        value: Object = decode_secret(body) if body.startswith(MAGIC) else yaml.load(body, Loader=yaml.CSafeLoader)
        return value

    def _list(self, version: str, kind: str, namespace: str) -> None:
        store = self.server.store
        if self._query.get("watch") in ("1", "true"):
            self._watch(version, kind, namespace)
            return
        selectors = self._query.get("labelSelector", ""), self._query.get("fieldSelector", "")
        items = store.list(kind, namespace, *selectors)
        metadata = {"resourceVersion": str(store.version)}
        self._send(200, {"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items})

    def _watch(self, version: str, kind: str, namespace: str) -> None:
        store = self.server.store
        events: queue.Queue[Object] = queue.Queue()
        watcher = (kind, namespace, events)
        with store.lock:
            store.watchers.append(watcher)
            known = store.list(kind, namespace, "", self._query.get("fieldSelector", ""))
            is_from_start = self._query.get("sendInitialEvents") == "true"
            since = 0 if is_from_start else int(self._query.get("resourceVersion") or store.version)
            for value in known:
                if int(value["metadata"]["resourceVersion"]) > since:
                    events.put({"type": "ADDED", "object": value})
            if is_from_start:
                end = {"resourceVersion": str(store.version), "annotations": {"k8s.io/initial-events-end": "true"}}
                events.put({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": end}})
        try:
            self._send_events(events)
        except OSError:
            pass  # the client has seen enough
        finally:
            store.watchers.remove(watcher)
            self.close_connection = True

    def _send_events(self, events: "queue.Queue[Object]") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.server.is_stopping.is_set():
            try:
                event = events.get(timeout=WATCH_POLL_S)
            except queue.Empty:
                continue
            self.wfile.write(json.dumps(event).encode() + b"\n")
            self.wfile.flush()

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"status": "Failure", "reason": reason, "message": message, "code": code}
        self._send(code, {"kind": "Status", "apiVersion": "v1", **status})

    def _send(self, code: int, value: Object) -> None:
        self.server.requests.append(f"{self.command} {self.path} {code}")
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _discovery(path: str) -> Object:
    if path == "/version":
        return VERSION
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    groups = []
    for group_version in RESOURCES:
        group, _, version = group_version.rpartition("/")
        if group:
            entry = {"groupVersion": group_version, "version": version}
            groups.append({"name": group, "versions": [entry], "preferredVersion": entry})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _api_path(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def _open_api(path: str) -> Object:
    """Says of every kind that the server checks fields itself, so that clients do not."""
    version = path.partition("/")[2]
    group, _, number = version.rpartition("/")
    check = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
    paths = {
        f"/{path}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "parameters": check,
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
            }
        }
        for plural, kind in RESOURCES.get(version, {}).items()
    }
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}


def _resource_list(version: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": kind != "Namespace", "kind": kind, "verbs": verbs}
        for plural, kind in RESOURCES[version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
