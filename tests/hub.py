"""A hub on this machine: it speaks the protocol of the Hugging Face hub, for downloads and uploads."""

import hashlib
import json
import re
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

REVISIONS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(ThreadingHTTPServer):
    """Serves `folder/NAME/REVISION/FILE` as models, and keeps a list of what was asked for."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests = folder, []
        self.blobs: dict[str, bytes] = {}
        self.repos: dict[str, dict] = {}
        """What was made here: of each repository whether it is private, its commits, and its files."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """`/api/models/NAME/revision/REV` lists a model's files, `/NAME/resolve/COMMIT/FILE` is one of them.

    Data sets have `/api/datasets/` and `/datasets/NAME/resolve/`.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        made = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/tree/main|/revision/main)?", path)
        if made and made[1] in self.server.repos:
            return self.of_made(made[1], path.endswith("/tree/main"), body)
        if found := re.fullmatch(r"/api/(?:models|(datasets))/(.+?)(?:/(revision|tree)/([^/]+)(/.*)?)?", path):
            name = "/".join(filter(None, found.groups()[:2]))
            return self.listing(name, found[3], found[4] or "main", body)
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commits = {commit: revision for revision, commit in REVISIONS.items()}
        target = self.server.folder / name / commits.get(revision, revision) / file
        if not file or not target.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        content = target.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": REVISIONS.get(revision, revision)}
        if wanted := self.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            part = content[int(begin) : int(end) + 1 if end else None]
            headers["Content-Range"] = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}"
            return self.send(206, part, headers, body)
        self.send(200, content, headers, body)

    def of_made(self, name: str, is_tree: bool, body: bool):
        repo = self.server.repos[name]
        if is_tree:
            answer = [{"type": "file", "oid": "0" * 40, "size": len(c), "path": p} for p, c in repo["files"].items()]
        else:
            siblings = [{"rfilename": path} for path in repo["files"]]
            answer = {"id": name, "sha": "c" * 40, "siblings": siblings, "tags": [], "private": repo["private"]}
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def do_POST(self):
        path, sent = unquote(urlparse(self.path).path), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, path))
        if self.headers.get("Authorization") != "Bearer hf_writes":
            return self.answer_json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            exists = name in self.server.repos
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.repos.setdefault(name, {"private": private, "commits": [], "files": {".gitattributes": b""}})
            return self.answer_json({"url": f"{self.server.address}/{name}"}, 409 if exists else 200)
        if path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = json.loads(sent)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            decided = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for file, mode in zip(files, modes, strict=True)
            ]
            return self.answer_json({"files": decided})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": blob["oid"], "size": blob["size"],
                    "actions": {"upload": {"href": f"{self.server.address}/blobs/{blob['oid']}"}},
                }
                for blob in json.loads(sent)["objects"]
            ]  # fmt: skip
            return self.answer_json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            repo = self.server.repos[found[1]]
            for line in map(json.loads, sent.decode().splitlines()):
                value = line["value"]
                match line["key"]:
                    case "header":
                        repo["commits"].append(value["summary"])
                    case "file":
                        repo["files"][value["path"]] = b64decode(value["content"])
                    case "lfsFile":
                        repo["files"][value["path"]] = self.server.blobs[value["oid"]]
                    case "deletedFile":
                        del repo["files"][value["path"]]
            address = f"{self.server.address}/{found[1]}/commit/{'d' * 40}"
            return self.answer_json({"commitUrl": address, "commitOid": "d" * 40, "success": True})
        self.answer_json({"error": f"unknown: {path}"}, 404)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.blobs[oid] = content
        self.send(200, b"", {}, body=True)

    def answer_json(self, answer, status: int = 200):
        self.send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=True)

    def listing(self, name: str, kind: str, revision: str, body: bool):
        revision = {commit: revision for revision, commit in REVISIONS.items()}.get(revision, revision)
        folder = self.server.folder / name / revision
        if not folder.is_dir():
            code = "RevisionNotFound" if folder.parent.is_dir() else "RepoNotFound"
            return self.send(404, b"{}", {"X-Error-Code": code}, body)
        files = [(file, str(file.relative_to(folder))) for file in sorted(folder.rglob("*")) if file.is_file()]
        if kind == "tree":
            answer = [{"type": "file", "oid": "0" * 40, "size": f.stat().st_size, "path": path} for f, path in files]
        else:
            siblings = [{"rfilename": path} for _, path in files]
            answer = {
                "id": name.removeprefix("datasets/"),
                "sha": REVISIONS[revision],
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass
