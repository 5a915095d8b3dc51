"""A real nginx in front of started web processes, with the configuration that docs/scaling.md gives to operators."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from omni2.env import BASE_DIR
from tests.running import Process, eventually, free_port

EXAMPLE = BASE_DIR / "deploy" / "nginx.conf"

needs_nginx = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")),
    reason="nginx and openssl are not both installed (Debian: apt install nginx-light openssl)",
)

# what a distribution's nginx.conf has around the files of conf.d
AROUND = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    {paths}
    include {folder}/omni2.conf;
}}
"""


class Nginx:
    """nginx on two loopback ports. `url` is its https address; `certificate` a file its clients have to trust."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.port, self.plain_port = free_port(), free_port()
        self.url = f"https://localhost:{self.port}"
        self.certificate = folder / "omni2.pem"
        self._make_certificate()

    def start(self, urls: Sequence[str]) -> None:
        """In front of these; returns when it answers."""
        (self.folder / "omni2.conf").write_text(self._configuration(urls))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {self.folder}/{kind};" for kind in kinds)
        user = "user root;" if os.geteuid() == 0 else ""
        file = self.folder / "nginx.conf"
        file.write_text(AROUND.format(folder=self.folder, paths=paths, user=user))
        log = self.folder / "error.log"
        self.process = Process("nginx", ["nginx", "-c", str(file), "-e", str(log)], os.environ, self.folder / "out.log")
        # without going where it leads to: nobody here trusts its certificate
        eventually(lambda: self._listens() or not self.process.alive, "nginx answers")
        assert self.process.alive, log.read_text()

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.plain_port), 2):
            return True
        return False

    def end(self) -> None:
        self.process.end()

    def _configuration(self, urls: Sequence[str]) -> str:
        """The example with our addresses, ports and files in place of those that an operator changes."""
        text = EXAMPLE.read_text()
        line = re.search(r"^ *server 127\.0\.0\.1:8090 (.*);\n", text, re.M)
        assert line, "the example names its servers"
        servers = "".join(f"    server {urlsplit(url).netloc} {line[1]};\n" for url in urls)
        text = re.sub(r"(^ *server 127\.0\.0\.1:809\d .*;\n)+", servers, text, flags=re.M)
        for old, new in (
            ("listen 80;", f"listen 127.0.0.1:{self.plain_port};"),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{self.port} ssl http2;"),
            ("server_name omni2.example.com;", "server_name localhost;"),
            ("/etc/ssl/omni2.pem", str(self.certificate)),
            ("/etc/ssl/omni2.key", str(self.folder / "omni2.key")),
        ):
            assert old in text, f"the example has {old}"
            text = text.replace(old, new)
        return text

    def _make_certificate(self) -> None:
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(self.folder / "omni2.key")]
        subprocess.run([*words, *files, "-out", str(self.certificate)], check=True, capture_output=True)
