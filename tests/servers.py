"""A server on this machine, and what makes it speak as the Hugging Face hub does.

The protocol is what huggingface_hub asks for: the facts of a repository; HEAD and GET
of its files, with ETag and commit; and for uploads a repository, LFS objects and a
commit.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from leaps_jax.zoo import references

LFS = (".safetensors", ".pth", ".pyth", ".bin", ".pkl")  # and what is large
LARGE = 10_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    """The name that git has for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    """Its commits, each {path: bytes}; the last one is `main`."""

    def __init__(self, files=None, **facts):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.facts = facts
        self.commit(files or {})

    def commit(self, files):
        key = repr(sorted(files.items())) + str(len(self.commits))
        self.main = hashlib.sha1(key.encode()).hexdigest()
        self.commits[self.main] = dict(files)
        return self.main

    def at(self, revision):
        revision = self.main if revision in (None, "main") else revision
        return (revision, self.commits[revision]) if revision in self.commits else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do(self):
        url = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = urllib.parse.unquote(url.path)
        self.server.asked.append(f"{self.command} {path}")
        for pattern, answer in self.server.routes:
            if found := re.fullmatch(pattern, path):
                return answer(self, *found.groups())
        self.answer(404, b"none")

    do_GET = do_HEAD = do_POST = do_PUT = do

    def answer(self, code, content=b"", length=None, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content_Type", "application/json")
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        if length:  # less comes than was said
            self.close_connection = True


@contextlib.contextmanager
def serving(routes):
    """A server with `address`, and `asked`: the requests that came."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.routes, server.asked = routes, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Hub:
    """The hub's side of the protocol; give `routes` to `serving`."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # of LFS
        self.cut: set[str] = set()  # files of which half is sent
        self.changed: dict[str, bytes] = {}  # content that is sent instead
        repo = "([^/]+/[^/]+)"
        self.routes = [
            (rf"/api/models/{repo}(?:/revision/(.+))?", self.info),
            (rf"/api/models/{repo}/tree/(\w+)", self.tree),
            (rf"/{repo}/resolve/([^/]+)/(.+)", self.resolve),
            ("/api/repos/create", self.create),
            ("/api/validate-yaml", lambda h: h.answer(200, {})),
            (rf"/api/models/{repo}/preupload/main", self.preupload),
            (rf"/{repo}\.git/info/lfs/objects/batch", self.batch),
            (r"/lfs/(\w+)", self.store),
            (rf"/api/models/{repo}/commit/main", self.commit),
        ]

    def of(self, handler, repo, revision):
        """The commit that is asked for, or None and an answer that refuses."""
        found, code = self.repos.get(repo), None
        known = handler.headers.get("Authorization") == "Bearer secret"
        if found is None or found.facts.get("private") and not known:
            code, name = 401 if not known else 404, "RepoNotFound"
        elif found.at(revision) is None:
            code, name = 404, "RevisionNotFound"
        if code:
            handler.answer(code, {"error": name}, X_Error_Code=name)
            return None
        return found.at(revision)

    def info(self, handler, repo, revision):
        if found := self.of(handler, repo, revision):
            siblings = [self.entry(n, c) for n, c in found[1].items()]
            facts = {"id": repo, "modelId": repo, "sha": found[0], "tags": []}
            handler.answer(200, facts | {"siblings": siblings, "downloads": 0})

    def tree(self, handler, repo, revision):
        if found := self.of(handler, repo, revision):
            rows = []
            for name, content in found[1].items():
                row = {"type": "file", "path": name, "size": len(content)}
                row["oid"] = blob(content)
                if self.is_lfs(name, content):
                    lfs = {"oid": sha256(content), "size": len(content)}
                    row["lfs"] = lfs | {"pointerSize": 130}
                rows.append(row)
            handler.answer(200, rows)

    def entry(self, name, content):
        entry = {"rfilename": name, "size": len(content), "blobId": blob(content)}
        if self.is_lfs(name, content):
            lfs = {"sha256": sha256(content), "size": len(content)}
            entry["lfs"] = lfs | {"pointerSize": 130}
        return entry

    def is_lfs(self, name, content):
        return name.endswith(LFS) or len(content) > LARGE

    def resolve(self, handler, repo, revision, name):
        if not (found := self.of(handler, repo, revision)):
            return
        if self.repos[repo].facts.get("gated"):
            return handler.answer(403, {}, X_Error_Code="GatedRepo")
        commit, files = found
        if name not in files:
            return handler.answer(404, {}, X_Error_Code="EntryNotFound")
        content = files[name]
        etag = sha256(content) if self.is_lfs(name, content) else blob(content)
        content = self.changed.get(name, content)
        facts = {"ETag": f'"{etag}"', "X_Repo_Commit": commit}
        facts["Accept_Ranges"] = "bytes"
        if name in self.cut and handler.command == "GET":
            half = content[: len(content) // 2]
            return handler.answer(200, half, length=len(content), **facts)
        handler.answer(200, content, **facts)

    def create(self, handler):
        asked = json.loads(handler.body)
        if handler.headers.get("Authorization") != "Bearer secret":
            return handler.answer(401, {"error": "Invalid username or password."})
        owner = asked.get("organization") or "me"
        if owner != "me":
            return handler.answer(403, {"error": "You don't have the rights"})
        repo = f"{owner}/{asked['name']}"
        there = repo in self.repos
        # old clients ask with `private`, new ones with `visibility`
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repos.setdefault(repo, Repo(private=bool(private)))
        handler.answer(409 if there else 200, {"url": f"/{repo}", "error": "exists"})

    def preupload(self, handler, repo):
        files = []
        for file in json.loads(handler.body)["files"]:
            lfs = file["path"].endswith(LFS) or file["size"] > LARGE
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode})
            files[-1] |= {"shouldIgnore": False, "oid": None}
        handler.answer(200, {"files": files})

    def batch(self, handler, repo):
        objects = []
        for item in json.loads(handler.body)["objects"]:
            href = f"http://{handler.headers['Host']}/lfs/{item['oid']}"
            objects.append(item | {"actions": {"upload": {"href": href}}})
        handler.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, handler, oid):
        if sha256(handler.body) != oid:
            return handler.answer(400, {})
        self.objects[oid] = handler.body
        handler.answer(200, {})

    def commit(self, handler, repo):
        files = dict(self.repos[repo].at("main")[1])
        for line in handler.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.repos[repo].commit(files)
        handler.answer(200, {"commitUrl": f"/{repo}/commit/{oid}", "commitOid": oid})


@contextlib.contextmanager
def as_hub(cache):
    """A `Hub` that huggingface_hub asks, as the environment tells it at its import."""
    hub = Hub()
    with serving(hub.routes) as server, pytest.MonkeyPatch.context() as patch:
        hub.asked, hub.address = server.asked, server.address
        told = {"ENDPOINT": hub.address, "HOME": str(cache), "HUB_DISABLE_XET": "1"}
        told |= {"TOKEN_PATH": str(cache / "token"), "HUB_DISABLE_TELEMETRY": "1"}
        for name, value in told.items():
            patch.setenv(f"HF_{name}", value)
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            patch.delenv(name, raising=False)
        forget_client()
        yield hub
    forget_client()


def forget_client():
    """The next import of huggingface_hub reads the environment anew."""
    for name in [n for n in sys.modules if n.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    references.fetch.cache_clear()
