"""A bucket of Google's on this machine: the part of the JSON API that reading needs, over HTTP."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Bucket:
    """Serves objects while it is entered; `requests` is what was asked for."""

    def __init__(self, name: str, objects: dict[str, bytes]):
        self.name, self.objects, self.requests, self.status = name, objects, [], 200

    def __enter__(self) -> "Bucket":
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                bucket.requests.append(self.path)
                status, headers, body = bucket.answer(self.path, self.headers.get("Range"))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?|/?)(/storageLayout)?", parts.path)
        if self.status != 200:
            return self.error(self.status, "not for you")
        if not found or found[1] != self.name:
            return self.error(404, "no such bucket")
        if found[2] is None:
            return self.json(self.listing(query))
        name = unquote(found[2])
        if name not in self.objects:
            return self.error(404, f"No such object: {name}")
        if query.get("alt") != "media":
            return self.json(self.metadata(name))
        content = self.objects[name]
        if wanted:
            begin, end = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            begin, end = int(begin), min(int(end or len(content)), len(content) - 1)
            if begin >= len(content):
                return self.error(416, "Requested range not satisfiable")
            headers = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
            return 206, headers, content[begin : end + 1]
        return 200, {}, content

    def listing(self, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                else:
                    items.append(self.metadata(name))
        return {"kind": "storage#objects", "items": items[: int(query.get("maxResults", 1000))],
                "prefixes": sorted(folders)}  # fmt: skip

    def metadata(self, name: str) -> dict:
        return {
            "kind": "storage#object", "name": name, "bucket": self.name, "size": str(len(self.objects[name])),
            "generation": "1", "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
            "mediaLink": f"{self.url}/download/storage/v1/b/{self.name}/o/{name}?alt=media", "storageClass": "STANDARD",
        }  # fmt: skip

    def json(self, answer: dict, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def error(self, status: int, message: str) -> tuple[int, dict[str, str], bytes]:
        return self.json({"error": {"code": status, "message": message}}, status)
