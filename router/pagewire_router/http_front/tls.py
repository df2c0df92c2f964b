"""TLS of the HTTP front, by the files of the gRPC front."""

import ssl

from pagewire_common.tls import PemContents, TlsFiles


def tls_context(cert: str, key: str, client_ca: str | None) -> ssl.SSLContext:
    """A server's context. Certificate and authorities are read again when they change. Raises TlsError.

    client_ca: authorities, one of which must have signed a client's certificate; None: clients need none.
    """

    def make(contents: PemContents) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(cert, key)
        if contents.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # Whoever resumes a session shows no certificate again, which may not be accepted any more.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
            context.load_verify_locations(cadata=contents.ca.decode("ascii"))
        return context

    files = TlsFiles(make, ca=client_ca, cert=cert, key=key)
    context = files.open()

    def use_latest(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in every handshake. Another context changes the certificate that is shown and the authorities."""
        latest = files.latest()
        if latest is not context:
            connection.context = latest

    context.sni_callback = use_latest
    return context
