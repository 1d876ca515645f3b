"""As much of the Hub as the real client needs to create, push, branch and download a model, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKEN = "hf_test"


@dataclass
class Repo:
    """A repository: commits are whole trees, branches name the last of them."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit_id(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Hub:
    """The state of the server. `fails` names the step that answers 400 from now on: `lfs` or `commit`."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    fails: str | None = None


class Missing(Exception):
    """What a request asks for is not there."""

    def __init__(self, what: str, code: int = 404, **headers: str):
        headers = {"X-Error-Code": f"{what}NotFound"} | headers
        self.answer = JSONResponse({"error": f"{what} not found"}, code, headers)


def metadata_errors(card: str) -> list[str]:
    """Faults of a card's metadata, by the rules of the Hub that concern what we write."""
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    id_ = r"[\w.-]+/[\w.-]+"
    patterns = {"base_model": id_, "license": "other", "license_name": "[a-z0-9.-]+", "license_link": "https://.+"}
    patterns |= {"pipeline_tag": "text-classification", "library_name": "transformers|saelens"}
    given = {name: data[name] for name in patterns if name in data}
    errors = [f"{name} {value!r}" for name, value in given.items() if not re.fullmatch(patterns[name], value)]
    errors += [f"datasets {name!r}" for name in data.get("datasets", ()) if not re.fullmatch(id_, name)]
    for index in data.get("model-index", ()):
        for result in index["results"]:
            needed = (index["name"], result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"])
            figures = [(metric["type"], metric["value"]) for metric in result["metrics"]]
            if not all(needed) or not figures or not all(kind and value is not None for kind, value in figures):
                errors.append(f"model-index {result!r}")
    return errors


def create_app(hub: Hub) -> FastAPI:
    app = FastAPI()

    def allowed(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    @app.exception_handler(Missing)
    async def refuse(_: Request, error: Missing) -> Response:
        return error.answer

    def find(request: Request, owner: str, name: str) -> Repo:
        repo = hub.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not allowed(request)):
            raise Missing("Repo", 401)
        return repo

    def find_commit(request: Request, owner: str, name: str, revision: str) -> tuple[Repo, str]:
        repo = find(request, owner, name)
        commit_id = repo.commit_id(revision)
        if commit_id is None:
            raise Missing("Revision")
        return repo, commit_id

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        if not allowed(request):
            return JSONResponse({"error": "Invalid credentials"}, 401)
        body = await request.json()
        repo_id = f"{body['organization']}/{body['name']}"
        answer = {"url": f"{hub.address}/{repo_id}"}
        if repo_id in hub.repos:
            return JSONResponse(answer | {"error": "You already created this model repo"}, 409)
        private = body.get("private") or body.get("visibility") == "private"  # by the version of the client
        hub.repos[repo_id] = Repo(bool(private))
        return JSONResponse(answer)

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Response:
        errors = metadata_errors((await request.json())["content"])
        return JSONResponse(
            {"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200
        )

    @app.post("/api/models/{owner}/{name}/preupload/{revision}")
    async def preupload(owner: str, name: str, revision: str, request: Request) -> Response:
        find(request, owner, name)
        if not allowed(request):
            return JSONResponse({"error": "Forbidden"}, 403)
        files = (await request.json())["files"]
        return JSONResponse(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(owner: str, name: str, request: Request) -> Response:
        objects = (await request.json())["objects"]
        for item in objects:
            if item["oid"] not in hub.large:
                item["actions"] = {"upload": {"href": f"{hub.address}/lfs/{item['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": objects})

    @app.put("/lfs/{oid}")
    async def upload(oid: str, request: Request) -> Response:
        if hub.fails == "lfs":
            return JSONResponse({"error": "The disk of the Hub is full"}, 400)
        content = await request.body()
        assert hashlib.sha256(content).hexdigest() == oid
        hub.large[oid] = content
        return Response()

    @app.post("/api/models/{owner}/{name}/commit/{revision}")
    async def commit(owner: str, name: str, revision: str, request: Request) -> Response:
        repo = find(request, owner, name)
        if hub.fails == "commit" or not allowed(request):
            return JSONResponse({"error": "Not now"}, 400)
        files = dict(repo.commits[repo.branches[revision]])
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit_id = f"{len(repo.commits):040x}"
        repo.commits[commit_id] = files
        repo.branches[revision] = commit_id
        url = f"{hub.address}/{owner}/{name}/commit/{commit_id}"
        return JSONResponse({"success": True, "commitOid": commit_id, "commitUrl": url})

    @app.post("/api/models/{owner}/{name}/branch/{branch}")
    async def create_branch(owner: str, name: str, branch: str, request: Request) -> Response:
        repo = find(request, owner, name)
        assert allowed(request)
        repo.branches[branch] = repo.branches["main"]
        return Response(status_code=201)

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    async def info(owner: str, name: str, request: Request, revision: str = "main") -> Response:
        repo, commit_id = find_commit(request, owner, name, revision)
        siblings = [{"rfilename": path} for path in repo.commits[commit_id]]
        about = {"_id": name, "id": f"{owner}/{name}", "sha": commit_id, "private": repo.private, "tags": []}
        return JSONResponse(about | {"siblings": siblings})

    @app.get("/api/models/{owner}/{name}/tree/{revision}")
    @app.get("/api/models/{owner}/{name}/tree/{revision}/{folder:path}")
    async def tree(owner: str, name: str, revision: str, request: Request, folder: str = "") -> Response:
        repo, commit_id = find_commit(request, owner, name, revision)
        files = repo.commits[commit_id]
        found = [path for path in files if path.startswith(folder)]
        if folder and not found:
            raise Missing("Entry")
        return JSONResponse([{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in found])

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(owner: str, name: str, revision: str, path: str, request: Request) -> Response:
        repo, commit_id = find_commit(request, owner, name, revision)
        if path not in repo.commits[commit_id]:
            raise Missing("Entry", **{"X-Repo-Commit": commit_id})
        content = repo.commits[commit_id][path]
        headers = {"X-Repo-Commit": commit_id, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(content))})
        return Response(content, headers=headers, media_type="application/octet-stream")

    return app


@contextmanager
def running_hub():
    """A server in a thread of its own, on a free port."""
    hub = Hub()
    server = uvicorn.Server(uvicorn.Config(create_app(hub), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield hub
    server.should_exit = True
    thread.join()
