"""A throw-away certificate, its own authority. Does not know what is served."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificate:
    """`begins_in_days` > 0: not valid yet, as on a host whose clock is behind."""

    def __init__(self, address: str = "127.0.0.1", *, begins_in_days: int = -1) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        place = x509.IPAddress(ipaddress.ip_address(address))
        begins = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begins_in_days)
        signed = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + datetime.timedelta(days=30))
            .add_extension(x509.SubjectAlternativeName([place]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.pem = signed.public_bytes(serialization.Encoding.PEM).decode()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            file.write(self.pem.encode())
            file.flush()
            self.context.load_cert_chain(file.name)
