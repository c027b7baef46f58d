"""The HTTP side: a JSON API with its OpenAPI document, the page, films in ranges, health and metrics.

It knows no Ray: whoever answers questions is an `Engine`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hero_platform.serving import films
from hero_platform.serving.access import COOKIE, SESSION_S, Access
from hero_platform.serving.schema import Answers, Problem, Question, Status, Token
from hero_platform.store.media import Media

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
PUBLIC = ("/", "/healthz", "/api/session")  # and /static/: nothing there is about anybody's videos
METHODS = ("GET", "HEAD", "POST")  # that metrics name
HEALTH_TIMEOUT_S = 5.0
WRONG_TOKEN_S = 0.5  # a guess takes as long
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",  # a player in a page elsewhere would tell it a film's length
    "referrer-policy": "no-referrer",
}
NOT_ALLOWED: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "a token is needed"},
    503: {"model": Problem, "description": "nobody answers: a replica starts or died"},
}


class Engine(Protocol):
    """Who answers questions."""

    async def search(self, question: str, top: int) -> dict[str, Any]:
        """`schema.Answers` but for the films of its moments."""

    async def status(self) -> dict[str, Any]:
        """`schema.Status` but for `films`."""


class _Metrics:
    """What `/metrics` shows, of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("hero_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram("hero_request_seconds", "From request to answer.", labels[:2], registry=self.registry)
        self.videos = Gauge("hero_index_videos", "Videos that are searched.", registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def make_app(engine: Engine, media: Media | None, access: Access) -> FastAPI:
    """The whole site."""
    app = FastAPI(
        title="HERO search",
        description="Sentences to moments of videos.",
        version="1",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    metrics = _Metrics()
    _add_guard(app, access, metrics)
    _add_session(app, access)
    # for the OpenAPI document: `guard` checks
    bearer = [Depends(HTTPBearer(auto_error=False))] if access.token_sha256 else []
    _add_search(app, engine, media, bearer)
    _add_health(app, engine, metrics)
    _add_films(app, media, bearer)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/static", StaticFiles(directory=PAGE))
    return app


def _add_guard(app: FastAPI, access: Access, metrics: _Metrics) -> None:
    """Every request: may it, how long did it take, and headers that keep the page to itself."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong and where, without the input: it may hold what JSON cannot."""
        told = [{name: problem[name] for name in ("loc", "msg", "type")} for problem in error.errors()]
        return JSONResponse({"detail": told}, status_code=422)

    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        began, path = time.perf_counter(), request.url.path
        public = path in PUBLIC or path.startswith("/static/")
        if not access.knows_host(request.headers.get("host", "")):
            response: Response = JSONResponse({"detail": "this service has another name"}, status_code=421)
        elif not public and not access.admits(request.headers.get("authorization", ""), request.cookies):
            response = JSONResponse(
                {"detail": "a token is needed"}, status_code=401, headers={"www-authenticate": "Bearer"}
            )
        else:
            response = await call(request)
        response.headers.update(HEADERS)
        if not path.startswith(("/media/", "/static/")):
            response.headers["cache-control"] = "no-store"
        route = getattr(request.scope.get("route"), "path", "other")
        method = request.method if request.method in METHODS else "other"  # anybody may make one up: each is kept
        metrics.requests.labels(method, route, str(response.status_code)).inc()
        metrics.seconds.labels(method, route).observe(time.perf_counter() - began)
        return response


def _add_session(app: FastAPI, access: Access) -> None:
    @app.post(
        "/api/session",
        status_code=204,
        responses={401: {"model": Problem, "description": "not the token"}},
        summary="Give the token once, get a cookie",
    )
    async def open_session(given: Token) -> Response:
        response = Response(status_code=204)
        if not access.token_sha256:
            return response
        if not access.is_token(given.token):
            await asyncio.sleep(WRONG_TOKEN_S)
            raise HTTPException(401, "that is not the token")
        response.set_cookie(COOKIE, access.session(), max_age=SESSION_S, httponly=True, samesite="strict")
        return response


def _add_search(app: FastAPI, engine: Engine, media: Media | None, bearer: list[Any]) -> None:
    @app.post("/api/search", responses=NOT_ALLOWED, dependencies=bearer, summary="The best moments of a question")
    async def search(asked: Question) -> Answers:
        found = await _answered(engine.search(asked.question, asked.top))
        for moment in found["moments"]:
            moment["film"] = _film(media, moment["video"])
        return Answers(**found)

    @app.get("/api/status", responses=NOT_ALLOWED, dependencies=bearer, summary="What is searched by what")
    async def status() -> Status:
        return Status(**await _answered(engine.status()), films=len(media.clips) if media else 0)


def _add_health(app: FastAPI, engine: Engine, metrics: _Metrics) -> None:
    @app.get("/healthz", responses={503: NOT_ALLOWED[503]}, summary="Whether questions are answered")
    async def health() -> dict[str, str]:
        status = await _answered(asyncio.wait_for(engine.status(), HEALTH_TIMEOUT_S))
        metrics.videos.set(status["videos"])
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_films(app: FastAPI, media: Media | None, bearer: list[Any]) -> None:
    known: dict[int | str, dict[str, Any]] = {
        200: {"content": {"video/mp4": {}}, "description": "the film"},
        206: {"content": {"video/mp4": {}}, "description": "a part of it"},
        400: {"description": "a range that is none"},
        404: {"model": Problem, "description": "no such film"},
        416: {"description": "a range behind its end"},
        503: {"model": Problem, "description": "where the films lie is out of reach"},
    }

    @app.head("/media/{video:path}", include_in_schema=False)
    @app.get(
        "/media/{video:path}",
        response_class=Response,
        responses={**known, 401: NOT_ALLOWED[401]},
        dependencies=bearer,
        summary="A film, whole or in ranges",
    )
    async def film(video: Annotated[str, "id of a video"], request: Request) -> Response:
        path = await asyncio.to_thread(films.place_of, media, video)
        if path is None:
            raise HTTPException(404, "there is no such film")
        try:
            return await films.send(path, request.method, request.headers)
        except FileNotFoundError as error:
            raise HTTPException(404, "there is no such film") from error
        except OSError as error:
            logger.warning("%s cannot be read: %s", path, error)
            raise HTTPException(503, "the film cannot be read now; try again") from error


async def _answered(asked: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """What the engine says; 503 where it does not."""
    try:
        return await asked
    except Exception as error:  # Ray has many ways to say that a replica is gone
        raise HTTPException(503, f"nobody answers now ({type(error).__name__}); try again") from error


def _film(media: Media | None, video: str) -> dict[str, Any] | None:
    """Where a video can be played, if it can be."""
    if media is None or films.place_of(media, video) is None:
        return None
    return {"url": f"/media/{quote(video, safe='')}", "start_s": media.clips[video].start}
