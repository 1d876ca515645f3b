"""Descriptions of Neuronpedia: asked for once, kept, and never in the way of a training."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sparserm_hf.sae import neuronpedia

SAID = {"/m/sae/1": [{"description": " numbers\nand dates "}], "/m/sae/2": []}


@pytest.fixture
def asked(monkeypatch):
    """What a local Neuronpedia was asked for."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200 if self.path in SAID else 429 if self.path.endswith("/9") else 404)
            body = json.dumps({"explanations": SAID.get(self.path)}).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(neuronpedia, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(neuronpedia.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(neuronpedia, "get_session", _session)
    yield paths
    server.shutdown()
    server.server_close()


def _session():
    """A client of our own: that of huggingface_hub refuses everything where the tests made it offline."""
    import httpx

    return httpx.Client()


def test_descriptions_are_looked_up_once_and_kept(asked, tmp_path, monkeypatch):
    found = neuronpedia.descriptions("m/sae", [1, 2, 3], tmp_path)
    assert found == {"1": "numbers and dates"} and asked == ["/m/sae/1", "/m/sae/2", "/m/sae/3"]
    assert neuronpedia.descriptions("m/sae", [3, 2, 1], tmp_path) == found and len(asked) == 3
    monkeypatch.setattr(neuronpedia.constants, "HF_HUB_OFFLINE", True)
    assert neuronpedia.descriptions("m/sae", [1, 7], tmp_path) == found and len(asked) == 3, "offline, the cache"


def test_what_cannot_be_asked_is_told_and_what_was_found_stays(asked, tmp_path, caplog, monkeypatch):
    assert neuronpedia.descriptions("m/sae", [1, 9, 2], tmp_path) == {"1": "numbers and dates"}
    assert asked == ["/m/sae/1", "/m/sae/9"], "after a refusal nothing more is asked"
    assert "Neuronpedia cannot be asked for the descriptions of 2 latents" in caplog.text
    monkeypatch.setattr(neuronpedia, "ADDRESS", "http://127.0.0.1:9")
    assert neuronpedia.descriptions("m/sae", [1, 2], tmp_path) == {"1": "numbers and dates"}
