"""Containers of rendered pods, run as processes of this machine.

Command, arguments, variables, mounts and probes are those of the manifest. What a node would provide is put in its
place, and nothing else: ports are free ones of this machine, the wildcard address and DNS names become the loopback
address, volumes are directories, and references to pod fields get a pod's values.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from chart import NAMESPACE, Object, Pod
from cluster import READY_TIMEOUT_S, eventually, free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc

LOOPBACK = "127.0.0.1"
STOP_TIMEOUT_S = 60.0
VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
Secrets = Mapping[str, Mapping[str, bytes]]
"""Files by the names of secret and key."""


@dataclass
class Node:
    """What the processes of one test share: ports, names, secrets, a directory."""

    directory: Path
    secrets: Secrets = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Addresses that replace host:port of a service."""
    filled: dict[str, Path] = field(default_factory=dict)
    """Directories that stand in for an emptyDir, by its path in the container, where a node has filled it before."""

    def expose(self, host: str, port: int) -> int:
        """A free port that connections to host:port lead to."""
        self.names[f"{host}:{port}"] = f"{LOOPBACK}:{(local := free_port())}"
        return local


class PodProcess:
    """One pod's container as a process, started when it is made. Ends with stop()."""

    def __init__(
        self,
        node: Node,
        pod: Pod,
        name: str,
        ports: Mapping[int, int] | None = None,
        labels: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            name: Of the pod.
            ports: Local ones by those of the container; the others are taken as they are free.
            labels: What a controller adds to the pod's labels.
            variables: What it adds to the container's.
        """
        self.name = name
        self._labels, self._added = labels or {}, variables or {}
        self._node, self._pod = node, pod
        self._directory = node.directory / name
        self._directory.mkdir()
        declared = [port["containerPort"] for port in pod.container.get("ports", [])]
        self.ports = {port: (ports or {}).get(port) or free_port() for port in declared}
        self._paths = self._mount_volumes()
        variables = self._variables()
        arguments = [self._localize(expand(text, variables)) for text in pod.arguments]
        command = [str(Path(sys.executable).parent / pod.container["command"][0]), *arguments]
        self._log = self._directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pod.owner["kind"] == "Pod" else log,
                stderr=log,
                env={"PATH": os.environ["PATH"], **{k: self._localize(v) for k, v in variables.items()}},
                cwd=self._directory,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """Returns the output of the process."""
        return f"--- {self.name}\n{self._log.read_text(errors='replace')[-8000:]}"

    def probe(self, name: str) -> bool:
        """Runs startupProbe, livenessProbe or readinessProbe once, as the kubelet does: in plaintext, without a key."""
        probe = self._pod.container[name]
        target = f"{LOOPBACK}:{self.ports[probe['grpc']['port']]}"
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_ready(self) -> None:
        """Waits until the startup probe and then the readiness probe succeed; the pod must be alive meanwhile."""
        for name in ("startupProbe", "readinessProbe"):
            eventually(lambda name=name: self._is_alive() and self.probe(name), f"{name}\n{self.log}", READY_TIMEOUT_S)  # type: ignore[misc]
        assert self.probe("livenessProbe"), self.log

    def wait(self) -> tuple[int, str]:
        """Status and standard output of a pod that ends by itself."""
        output, _ = self.process.communicate(timeout=READY_TIMEOUT_S)
        return self.process.returncode, (output or b"").decode()

    def stop(self) -> int:
        """Ends it as the kubelet does, by SIGTERM; returns its status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def _is_alive(self) -> bool:
        assert self.process.poll() is None, f"ended with {self.process.returncode}\n{self.log}"
        return True

    def _mount_volumes(self) -> dict[str, Path]:
        """Makes a directory of each mount; by path in the container, deepest first."""
        volumes = {volume["name"]: volume for volume in self._pod.spec["volumes"]}
        paths = {}
        for mount in self._pod.container["volumeMounts"]:
            path, volume = mount["mountPath"], volumes[mount["name"]]
            directory = self._node.filled.get(path) or self._directory / mount["name"]
            directory.mkdir(exist_ok=True)
            for item in volume.get("secret", {}).get("items", []):
                content = self._node.secrets[volume["secret"]["secretName"]][item["key"]]
                (directory / item["path"]).write_bytes(content)
            paths[path] = directory
        return dict(sorted(paths.items(), key=lambda pair: -len(pair[0])))

    def _variables(self) -> dict[str, str]:
        variables = dict(self._added)
        for variable in self._pod.container.get("env", []):
            if "value" in variable:
                variables[variable["name"]] = expand(variable["value"], variables)
            else:
                variables[variable["name"]] = self._field(variable["valueFrom"])
        return variables

    def _field(self, source: Object) -> str:
        """A reference to the pod's fields or its container's resources."""
        if "resourceFieldRef" in source:
            kind, resource = source["resourceFieldRef"]["resource"].split(".")
            return str(math.ceil(cores(self._pod.container["resources"][kind][resource])))
        fields = {
            **{f"metadata.labels['{name}']": value for name, value in self._labels.items()},
            "metadata.name": self.name,
            "metadata.namespace": NAMESPACE,
            "spec.nodeName": "node-0",
        }
        return fields[source["fieldRef"]["fieldPath"]]

    def _localize(self, text: str) -> str:
        """The text with this machine's ports, addresses and directories."""
        for name, local in self._node.names.items():
            text = text.replace(name, local)
        for port, local_port in self.ports.items():
            text = re.sub(rf"^--listen=\S+:{port}$", f"--listen={LOOPBACK}:{local_port}", text)
            text = re.sub(rf"^(--(?:http|metrics|health)-port)={port}$", rf"\1={local_port}", text)
        mounts = "|".join(re.escape(path) for path in self._paths)
        # At once: what a mount is replaced by may itself lie below another one's path.
        return re.sub(rf"(?:(?<==)|^)(?:{mounts})(?=/|$)", lambda match: str(self._paths[match[0]]), text)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) as Kubernetes expands it: names that are not known stay as they are."""
    return VARIABLE.sub(lambda match: variables.get(match[1], match[0]), text)


def cores(quantity: Any) -> float:
    """A CPU quantity such as 2 or 500m."""
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def service_name(objects: Sequence[Object], component: str) -> str:
    """The name of the service that leads to a component: the router's for clients, the shards' headless one."""
    for value in objects:
        labels = value["metadata"]["labels"]
        if value["kind"] == "Service" and labels.get("app.kubernetes.io/component") == component:
            return f"{value['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
    raise AssertionError(f"no service for {component}")
