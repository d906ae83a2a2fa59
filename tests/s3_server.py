"""An S3 server of this process, for tests of remote stores; stopped and started again it still has its objects."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import pyarrow.fs
import pytest

__all__ = ["BUCKET", "S3Server", "s3_environment"]

BUCKET = "bucket"


class S3Server:
    """moto's server on a free port of 127.0.0.1. `requests` are (method, path with query), in order."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.port = 0
        self._server: object = None
        #: Requests that match are answered by status 500 as long as the count is above 0.
        self.failures: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        inner = DomainDispatcherApplication(create_backend_app)

        def application(environ: dict[str, str], start_response: object) -> object:
            method = environ["REQUEST_METHOD"]
            query = environ.get("QUERY_STRING", "")
            path = environ["PATH_INFO"] + (f"?{query}" if query else "")
            self.requests.append((method, path))
            for failure in self.failures:
                if failure[0] == method and failure[1] in path:
                    self.failures.remove(failure)
                    start_response("500 Internal Server Error", [("Content-Type", "text/xml")])  # type: ignore[operator]
                    return [b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"]
            return inner(environ, start_response)

        self._server = server = make_server("127.0.0.1", self.port, application, threaded=True)
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """End; further requests are refused."""
        self._server.shutdown()  # type: ignore[attr-defined]
        self._server.server_close()  # type: ignore[attr-defined]


@contextlib.contextmanager
def s3_environment(server: S3Server) -> Iterator[None]:
    """The variables by which clients find `server`, and an empty bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        pyarrow.fs.S3FileSystem(endpoint_override=server.url, allow_bucket_creation=True).create_dir(BUCKET)
        yield
