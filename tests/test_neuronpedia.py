"""Descriptions on Neuronpedia are looked up once and cached, and their failure never stops a training."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sparserm_hf.sae import neuronpedia

SAID = {
    "/m/sae/1": [{"description": " numbers\nand dates "}, {"description": "another"}],
    "/m/sae/2": [],
    "/m/sae/4": [{"description": None}, {"description": "\u202elong\x1b " + 80 * "x"}],
    "/m/sae/5": ["malformed"],
}


@pytest.fixture
def asked(monkeypatch):
    """Start a local Neuronpedia, and return the list of the paths that it is asked for."""
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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(neuronpedia, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(neuronpedia.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(neuronpedia, "get_session", _session)
    yield paths
    server.shutdown()
    server.server_close()


def _session():
    """Make an own client: the client of huggingface_hub refuses everything in offline mode."""
    import httpx

    return httpx.Client()


def test_descriptions_are_looked_up_once_and_kept(asked, tmp_path, caplog, monkeypatch):
    found = neuronpedia.look_up_descriptions("m/sae", [1, 2, 3], tmp_path)
    assert found == {"1": "numbers and dates"} and asked == ["/m/sae/1", "/m/sae/2", "/m/sae/3"]
    assert neuronpedia.look_up_descriptions("m/sae", [3, 2, 1], tmp_path) == found and len(asked) == 3
    monkeypatch.setattr(neuronpedia.constants, "HF_HUB_OFFLINE", True)
    assert neuronpedia.look_up_descriptions("m/sae", [1, 2], tmp_path) == found and not caplog.records, (
        "nothing is missing"
    )
    assert neuronpedia.look_up_descriptions("m/sae", [1, 7], tmp_path) == found and len(asked) == 3, (
        "offline, the cache"
    )
    (record,) = caplog.records
    assert record.getMessage() == (
        "Neuronpedia cannot be asked for the descriptions of 1 latents (HF_HUB_OFFLINE is set)."
    )


def test_descriptions_are_one_line(asked, tmp_path):
    assert neuronpedia.look_up_descriptions("m/sae", [4, 4], tmp_path) == {"4": f"long {74 * 'x'}…"}
    assert asked == ["/m/sae/4"]


@pytest.mark.parametrize(("latent", "why"), [(9, "429 Too Many Requests"), (5, "'str' object has no attribute 'get'")])
def test_after_a_refusal_nothing_more_is_asked(asked, tmp_path, caplog, latent, why):
    assert neuronpedia.look_up_descriptions("m/sae", [1, latent, 2], tmp_path) == {"1": "numbers and dates"}
    assert asked == ["/m/sae/1", f"/m/sae/{latent}"]
    (record,) = caplog.records
    assert "Neuronpedia cannot be asked for the descriptions of 2 latents" in record.getMessage()
    assert why in record.getMessage()
    assert neuronpedia.look_up_descriptions("m/sae", [1], tmp_path) == {"1": "numbers and dates"} and len(asked) == 2


def test_without_a_connection_there_is_the_cache(asked, tmp_path, caplog, monkeypatch):
    neuronpedia.look_up_descriptions("m/sae", [1], tmp_path)
    monkeypatch.setattr(neuronpedia, "ADDRESS", "http://127.0.0.1:9")
    assert neuronpedia.look_up_descriptions("m/sae", [3, 1, 2], tmp_path) == {"1": "numbers and dates"}
    assert len(caplog.records) == 1 and "of 2 latents" in caplog.text


def test_an_interrupted_look_up_keeps_what_it_found(asked, tmp_path, monkeypatch):
    look_up = neuronpedia._look_up

    def interrupted(address):
        if address.endswith("/2"):
            raise KeyboardInterrupt
        return look_up(address)

    monkeypatch.setattr(neuronpedia, "_look_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        neuronpedia.look_up_descriptions("m/sae", [1, 2], tmp_path)
    assert json.loads((tmp_path / "neuronpedia" / "m" / "sae.json").read_text()) == {"1": "numbers and dates"}


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"1": 2}', "\xff"])
def test_a_broken_cache_is_looked_up_anew(asked, tmp_path, broken):
    file = tmp_path / "neuronpedia" / "m" / "sae.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(broken.encode("latin-1"))
    assert neuronpedia.look_up_descriptions("m/sae", [1], tmp_path) == {"1": "numbers and dates"}
    assert json.loads(file.read_text()) == {"1": "numbers and dates"}


def test_a_cache_that_cannot_be_written_is_told(asked, tmp_path, caplog):
    (tmp_path / "neuronpedia").write_text("a file where a folder should be")
    assert neuronpedia.look_up_descriptions("m/sae", [1], tmp_path) == {"1": "numbers and dates"}
    (record,) = caplog.records
    assert "cannot be kept in" in record.getMessage()


@pytest.mark.parametrize("other", ["", "sae", "a/b/c", "../sae", "m/..", "m/", "/sae", "m/sae?x", "m/sa e", "m/sae\n"])
def test_an_id_of_another_form_is_not_asked_for(asked, tmp_path, other):
    assert neuronpedia.look_up_descriptions(other, [1], tmp_path) == {} and not asked and not list(tmp_path.iterdir())
