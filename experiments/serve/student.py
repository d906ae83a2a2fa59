"""An exported student behind HTTP, by Ray Serve: requests that come together are answered in one forward pass.

    raybrew export runs/sst2/sweep-0123456789 --to sst2-student --format onnx-int8
    serve run --app-dir experiments/serve --working-dir experiments/serve student:app folder=$PWD/sst2-student
    curl localhost:8000 --json '{"text": "a fine film"}'
    curl localhost:8000 --json '[{"text": "a fine film"}, {"text": "a dull one"}]'

Rows are those of `raybrew predict`, and so are the answers. Arguments: `folder` (an export; default: the environment
variable RAYBREW_STUDENT), `format` (one of those exported), `replicas`, `threads` (of each replica), `batch_rows` and
`batch_wait_seconds` (how long the first request waits for others).
"""

# No `from __future__ import annotations`: Serve reads the type of `app`'s argument, and must find a class, not text.

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

#: Rows of one request; more belong into `raybrew predict`.
MOST_ROWS = 1024


class Arguments(BaseModel):
    """What `serve run student:app key=value ...` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(default_factory=lambda: os.environ.get("RAYBREW_STUDENT", ""))
    format: str | None = None
    replicas: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    batch_rows: int = Field(default=32, ge=1)
    batch_wait_seconds: float = Field(default=0.01, ge=0)


class Answers:
    """One replica: a student, and the queue in front of it."""

    def __init__(self, arguments: Arguments) -> None:
        # Imported here: it takes seconds, and whoever only describes the deployment needs none of it.
        import torch

        from raybrew import load_student

        torch.set_num_threads(arguments.threads)
        self.student = load_student(arguments.folder, arguments.format)
        self.answer.set_max_batch_size(arguments.batch_rows)  # type: ignore[attr-defined]
        self.answer.set_batch_wait_timeout_s(arguments.batch_wait_seconds)  # type: ignore[attr-defined]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def answer(self, rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answers to the rows of several requests; a row that cannot be used gets an `error` and harms no other."""
        return answers_of(self.student, rows)

    async def __call__(self, request: Request) -> JSONResponse:
        """`{"text": ...}` or a list of such rows; the answer has the same form. 400 says what is wrong with them."""
        import asyncio

        try:
            given = await request.json()
        except ValueError:
            return JSONResponse({"error": "the body is no JSON"}, status_code=400)
        rows = given if isinstance(given, list) else [given]
        if len(rows) > MOST_ROWS or not all(isinstance(row, dict) for row in rows):
            return JSONResponse({"error": f"a row (an object) or up to {MOST_ROWS} of them"}, status_code=400)
        found = await asyncio.gather(*(self.answer(row) for row in rows))
        wrong = any("error" in row for row in found)
        return JSONResponse(found if isinstance(given, list) else found[0], status_code=400 if wrong else 200)


def answers_of(student: Any, rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `student` predicts of each row, or `{"error": ...}`."""
    from raybrew.errors import DataError

    try:
        return student.predict(rows)  # type: ignore[no-any-return]
    except DataError:
        found: list[dict[str, Any]] = []
        for row in rows:  # one of them is wrong: who asked for the others shall not notice
            try:
                found += student.predict([row])
            except DataError as error:
                found.append({"error": str(error)})
        return found


def app(arguments: Arguments) -> serve.Application:
    """The application that `serve run student:app folder=...` deploys."""
    if not (Path(arguments.folder) / "raybrew.json").is_file():
        raise ValueError(
            f"folder: given {arguments.folder!r}, which holds no raybrew.json; name an export: folder=/path, or "
            "RAYBREW_STUDENT=/path"
        )
    deployment = serve.deployment(
        Answers,
        name="student",
        num_replicas=arguments.replicas,
        max_ongoing_requests=4 * arguments.batch_rows,
        ray_actor_options={"num_cpus": arguments.threads},
    )
    return deployment.bind(arguments.model_copy(update={"folder": str(Path(arguments.folder).absolute())}))
