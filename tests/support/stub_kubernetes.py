"""A Kubernetes API server that answers with fixed documents."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FORBIDDEN = (403, {"message": 'nodes "n1" is forbidden: User "reader" cannot get resource "nodes/proxy"'})
PODS = "/api/v1/namespaces/atlas/pods"
SUMMARY = "/api/v1/nodes/n1/proxy/stats/summary"


class StubApiServer:
    """Serves ``answers``, which maps paths to (status, document), and writes a kubeconfig for itself."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/version": (200, {"gitVersion": "v1.30.0"}),
            "/api/v1/namespaces/atlas": (200, {}),
        }
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, document = answers.get(self.path, (404, {"message": "not found"}))
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.kubeconfig = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def pod_list(service: str, label: str = "app") -> tuple[int, Any]:
    """A list of one pod ``p1`` with one container ``c``."""
    limits = {"limits": {"cpu": "500m"}}
    state = {"name": "c", "restartCount": 0, "imageID": "docker://sha256:1", "state": {"running": {}}}
    pod = {
        "metadata": {"name": "p1", "uid": "p1", "labels": {label: service}},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "image": f"{service}:latest", "resources": limits}],
        },
        "status": {"startTime": "2026-01-01T00:00:00Z", "containerStatuses": [state]},
    }
    return 200, {"items": [pod]}


def kubelet_summary(
    at: float,
    cpu: float,
    start: float,
    pod_cpu: float,
    zero: datetime = datetime(2026, 1, 1, tzinfo=UTC),
) -> tuple[int, Any]:
    """A kubelet's summary of the pod: counters of container and pod read ``at`` seconds after ``zero``."""

    def clock(seconds: float) -> str:
        return (zero + timedelta(seconds=seconds)).isoformat()

    container = {
        "name": "c",
        "startTime": clock(start),
        "cpu": {"time": clock(at), "usageCoreNanoSeconds": round(cpu * 1e9)},
        "memory": {"workingSetBytes": 5},
    }
    pod = {
        "podRef": {"name": "p1", "namespace": "atlas", "uid": "p1"},
        "cpu": {"time": clock(at), "usageCoreNanoSeconds": round(pod_cpu * 1e9)},
        "containers": [container],
    }
    node = {"startTime": clock(0), "cpu": {"time": clock(at), "usageCoreNanoSeconds": int(9e9)}}
    return 200, {"node": node, "pods": [pod]}
