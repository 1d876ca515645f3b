"""The server on a real socket: when it listens, how fast it answers, and how it stops."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from world import make_rows

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from sparserm_hf.scoring.reward_models import load_reward_model  # noqa: E402
from sparserm_hf.server.app import create_app  # noqa: E402
from sparserm_hf.server.listening import Server, open_socket  # noqa: E402

ONE = {"rows": [{"text": "w1 w2"}]}


@pytest.fixture(scope="module")
def loaded(trained):
    return load_reward_model(str(trained), torch.device("cpu"))


@pytest.fixture
def served(loaded):
    """A server in a thread: its address, and a function that asks it to stop and waits."""
    started = []

    def start(app, **options):
        server, listening = Server(app, **options), open_socket("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        started.append((server, thread))
        return listening.getsockname()

    def stop():
        for server, thread in started:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    yield start, stop
    stop()


def test_connections_send_small_answers_at_once():
    """asyncio turns Nagle's algorithm off only for sockets that name TCP: each answer waited 40 ms for an ACK."""

    async def accepted():
        options = asyncio.get_running_loop().create_future()

        async def note(reader, writer):
            options.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = open_socket("127.0.0.1", 0)
        async with await asyncio.start_server(note, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return await options

    assert asyncio.run(accepted())


def test_it_listens_when_it_says_so(loaded, served, capsys):
    start, _ = served
    host, port = start(create_app(*loaded, "model"))
    while "Serving" not in capsys.readouterr().out:
        time.sleep(0.01)
    assert httpx.get(f"http://{host}:{port}/health").json() == {"status": "ok", "model": "model"}


def test_a_stuck_client_does_not_hold_up_a_stop(loaded, served):
    """One that sent half of a body and then nothing kept the server from stopping for ever."""
    start, stop = served
    address = start(create_app(*loaded, "model"), grace=1)
    with socket.create_connection(address) as stuck:
        stuck.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"http://{address[0]}:{address[1]}/health").status_code == 200
        stop()


def test_many_connections_and_a_departed_one(loaded, served):
    start, _ = served
    address = start(create_app(*loaded, "model"))
    body = json.dumps({"rows": make_rows(50)}).encode()
    with socket.create_connection(address) as leaves:
        head = (
            f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        leaves.sendall(head.encode() + b"\r\n\r\n" + body)
    with ThreadPoolExecutor(8) as pool:
        url = f"http://{address[0]}:{address[1]}/score"
        answers = list(pool.map(lambda _: httpx.post(url, json=ONE, timeout=60), range(24)))
    assert {answer.status_code for answer in answers} == {200}
