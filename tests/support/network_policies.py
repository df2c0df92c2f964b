"""Evaluates NetworkPolicies, with the label selectors that the chart uses: which pod may connect to which."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chart import NAMESPACE, Object


@dataclass(frozen=True)
class Endpoint:
    """A pod of this or another namespace."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE

    @property
    def namespace_labels(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace}


def may_connect(
    policies: Sequence[Object], source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the source's egress and the target's ingress both allow it."""
    return _allowed(policies, "Egress", source, target, port, protocol) and _allowed(
        policies, "Ingress", target, source, port, protocol
    )


def _allowed(
    policies: Sequence[Object], direction: str, subject: Endpoint, peer: Endpoint, port: int, protocol: str
) -> bool:
    """A pod that no policy of this direction selects may do anything, any other what one of them allows."""
    binding = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == subject.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], subject.labels)
    ]
    side = {"Ingress": "from", "Egress": "to"}[direction]
    return not binding or any(
        _has_peer(rule.get(side), peer, subject.namespace) and _has_port(rule.get("ports"), port, protocol)
        for spec in binding
        for rule in spec.get(direction.lower()) or []
    )


def _has_peer(peers: list[Object] | None, endpoint: Endpoint, own_namespace: str) -> bool:
    if not peers:  # a rule without peers means everyone
        return True
    return any(_is_peer(peer, endpoint, own_namespace) for peer in peers if "ipBlock" not in peer)


def _is_peer(peer: Object, endpoint: Endpoint, own_namespace: str) -> bool:
    namespaces = peer.get("namespaceSelector")
    in_namespace = (
        endpoint.namespace == own_namespace if namespaces is None else _selects(namespaces, endpoint.namespace_labels)
    )
    return in_namespace and _selects(peer.get("podSelector", {}), endpoint.labels)


def _has_port(ports: list[Object] | None, port: int, protocol: str) -> bool:
    return not ports or any(entry["port"] == port and entry.get("protocol", "TCP") == protocol for entry in ports)


def _selects(selector: Object, labels: dict[str, Any]) -> bool:
    assert set(selector) <= {"matchLabels"}, "other selectors are not understood here"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
