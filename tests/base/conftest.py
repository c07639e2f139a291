"""A local HTTP server that plays the part of the Hub's HTTP API that huggingface_hub uses."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKENS = {"hf_writer": True, "hf_reader": False}


@dataclasses.dataclass
class Repository:
    """One model repository: every commit is a whole set of files."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    references: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, files: dict[str, bytes], *references: str) -> str:
        identity = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[identity] = files
        for reference in references or ("main",):
            self.references[reference] = identity
        return identity


class FakeHub:
    """The server's content, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.after: dict[str, Callable[[], object]] = {}
        self.down = False
        self.url = ""

    def add(self, name: str, folder: Path, *references: str, **settings: bool) -> str:
        """Commit the files of a folder, subfolders included."""
        repository = self.repositories.setdefault(name, Repository(**settings))
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return repository.commit(files, *references)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def answer(self, status: int, content: bytes | dict[str, Any] = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "refused", **headers: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def __getattr__(self, name: str) -> Any:
        # The base class looks for do_GET, do_HEAD and so on.
        if name in ("do_GET", "do_HEAD", "do_POST", "do_PUT"):
            return self.any_request
        raise AttributeError(name)

    def read_body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    def any_request(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.read_body()
        self.hub.requests.append(f"{self.command} {path}")
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if self.hub.down:
            self.answer(503)
        elif self.token() is not None and self.token() not in TOKENS:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif file is not None:
            self.resolve(*file.groups())
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.startswith("/large/"):
            self.hub.large[path.rpartition("/")[2]] = body
            self.answer(200)
        elif TOKENS.get(self.token() or ""):
            self.write(path, body)
        else:
            self.refuse(403 if self.token() else 401, "", "You may not write here.")

    def write(self, path: str, body: bytes) -> None:
        model = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif model is not None and model[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": modes[name], "shouldIgnore": False, "oid": None} for name in names]
            self.answer(200, {"files": files})
        elif model is not None:
            self.commit(model[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.token() is None):
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if repository.gated and self.token() is None:
            return self.refuse(401, "GatedRepo", "Access to it is restricted")
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        content = repository.commits[commit].get(file)
        if content is None:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit)
        self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        if self.command == "GET" and file in self.hub.after:
            self.hub.after.pop(file)()
        return None

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repositories:
            return self.answer(409, url)
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.hub.repositories[name] = Repository(private=bool(private))
        return self.answer(200, url)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits.get(repository.references.get("main", ""), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        identity = repository.commit(files)
        url = f"{self.hub.url}/{name}/commit/{identity}"
        self.answer(200, {"success": True, "commitOid": identity, "commitUrl": url, "hookOutput": ""})


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    content = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": content}))
    content.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield content
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run_with_hub(hub: FakeHub, tmp_path: Path) -> Callable[..., Any]:
    """Runs Python code in a process whose Hub is the local server; returns what the code leaves in ``result``."""

    def run(code: str, **environment: str) -> Any:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        script = f"{_PROLOGUE}\n{code}\nprint('RESULT ' + json.dumps(result))"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script],
            check=False,
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.rpartition("RESULT ")[2])

    return run


# Without torch where a test does without, because importing it takes longer than all the rest.
_PROLOGUE = """
import json, time, warnings
from safetensors import safe_open
from keyglue.base.errors import HubError
from keyglue.base.hub import Source

def mark(**where):
    "The number that tells the test's models apart, if configuration and weights agree about it."
    source, _ = Source.split("owner/tiny", where)
    value = json.loads(source.file("config.json").read_text())["mark"]
    with safe_open(source.file("model.safetensors"), framework="np") as weights:
        assert float(weights.get_tensor("token_confidence.0.token.bias")[0]) == value
    return value

def error(name="owner/tiny", **where):
    try:
        Source.split(name, where)[0].file("config.json")
    except HubError as caught:
        return str(caught)
"""
