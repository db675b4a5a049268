"""A company's network on loopback: an authority of its own, servers behind TLS, and a proxy that is the only way out.

The proxy opens tunnels (CONNECT) to the hosts that it knows by name, and to nowhere else; it looks into none of them.
"""

from __future__ import annotations

import base64
import datetime
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class TcpListener:
    """A port of loopback; each connection is handled on a thread of its own."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._handle(connection)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def pipe(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one side is done."""

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=carry, args=(other, one), daemon=True)
    back.start()
    carry(one, other)
    back.join()


class CertificateAuthority:
    """Signs certificates; `bundle` is the file that whoever trusts it names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "The authority of the company")])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._certificate(self._name, self._key.public_key(), basic)
        self.bundle = folder / "company.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context_for(self, host: str) -> ssl.SSLContext:
        """What a server of that name shows."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = self._certificate(name, key.public_key(), names)
        file = self._folder / f"{host}.pem"
        private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pem = serialization.Encoding.PEM
        file.write_bytes(key.private_bytes(pem, *private) + certificate.public_bytes(pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )


class CorporateProxy:
    """`serve(host, url)` puts a plain server behind TLS and a name; `proxy_url` is the way to it."""

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self.authority = CertificateAuthority(folder)
        self.tunnels: list[str] = []
        self._password = password
        self._ports: dict[str, int] = {}
        self._stack = ExitStack()
        self._proxy = self._listen(self._tunnel)
        user = f"user:{password}@" if password else ""
        self.proxy_url = f"http://{user}127.0.0.1:{self._proxy.port}"

    def _listen(self, handle: Callable[[socket.socket], None]) -> TcpListener:
        listener = TcpListener(handle)
        self._stack.callback(listener.close)
        return listener

    def serve(self, host: str, url: str) -> int:
        """The port on which TLS ends; the proxy leads `host:443` to it."""
        context, upstream = self.authority.context_for(host), urlsplit(url)

        def handle(connection: socket.socket) -> None:
            with (
                context.wrap_socket(connection, server_side=True) as inside,
                socket.create_connection((upstream.hostname, upstream.port)) as server,
            ):
                pipe(inside, server)

        self._ports[f"{host}:443"] = self._listen(handle).port
        return self._ports[f"{host}:443"]

    def _tunnel(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := connection.recv(4096)):
                return
            head += piece
        method, target, *_ = head.decode("latin-1").split()
        self.tunnels.append(f"{method} {target}")
        if self._password and not self._is_allowed(head):
            connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        elif method != "CONNECT" or target not in self._ports:
            connection.sendall(b"HTTP/1.1 403 Blocked by the company\r\nContent-Length: 0\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with socket.create_connection(("127.0.0.1", self._ports[target])) as server:
                pipe(connection, server)

    def _is_allowed(self, head: bytes) -> bool:
        expected = base64.b64encode(f"user:{self._password}".encode())
        return b"Basic " + expected in head

    def close(self) -> None:
        self._stack.close()
