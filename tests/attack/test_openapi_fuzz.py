"""The OpenAPI document against the server: whatever fits it, or breaks it, is answered as it says.

Requests are made from the document alone, half of them to fit it and half not to; so that they get further
than the first check, ids, names and numbers are now and then replaced by real ones. No answer is a server
error, or one that the document does not know, or of another shape.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, not_a_server_error

from tests.rounds import Rounds
from tests.server.app_rig import PASSWORD, TLS, create, device_of, serving
from whimbrel.server.app import ROUTES
from whimbrel.server.http import EVENTS
from whimbrel.server.hub import ServerSettings
from whimbrel.server.problem import STATUS_OF_CODE, Problem
from whimbrel.server.service import HttpSettings

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 60
CHECK_NAMES = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    "ignored_auth",
}
LEFT_OUT = {
    "negative_data_rejection": "unknown fields and parameters are to be ignored",
    "positive_data_acceptance": "what a schema cannot say (a number in turn, who is a member) is a 400",
    "max_response_time": "no test of ours asserts a time",
    "use_after_free": "for documents with links",
    "ensure_resource_availability": "for documents with links",
    "object_level_authorization": "test_access_http does it for every route",
}
NEVER = (500, 501, 502, 504)


class Served:
    """A server on a thread of its own: what asks it here is synchronous."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = self.token = ""
        self.numbers = iter(range(1, 10**6))
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._error = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        http = HttpSettings(login_burst=10**6, poll_s=0.0, poll_s_max=1.0)
        limits = ServerSettings(rate_limit=None, links_per_user_max=1_000)
        async with serving(
            self._folder, "ann", "bob", server=limits, http=http, shutdown_within_s=1.0
        ) as server:
            self.url, self.token = server.url, await server.login("ann")
            await create(server, self.token, "team", "bob")
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def http(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=LIMIT_S, verify=TLS)

    def luck(self, draw: Any, case: Any) -> None:
        """Replace some of what was made up by what is there."""
        parameters = case.path_parameters or {}
        for name, real in (("conversation", "team"), ("user", "bob")):
            if name in parameters and draw(st.booleans()):
                parameters[name] = real
        body = case.body
        if not isinstance(body, dict) or not draw(st.booleans()):
            return
        real_values = {
            "username": "ann",
            "password": PASSWORD,
            "device": device_of("ann", 2),
            "user": "bob",
            "stream": 1,
            "members": ["bob"],
        }
        every = draw(st.booleans())
        for name, value in real_values.items():
            if name in body and (every or draw(st.booleans())):
                body[name] = value
        if "n" in body:
            body["n"] = next(self.numbers)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("fuzz"))
    try:
        yield served
    finally:
        served.close()


def operations(served: Served) -> list[Any]:
    with served.http() as http:
        schema = schemathesis.openapi.from_dict(http.get("/api/openapi.json").json())
    schema.config.update(base_url=served.url)
    found: list[Any] = list(schema.get_all_operations())
    return [one.ok() for one in found]


def checks() -> list[Any]:
    # The registry loads the other checks when it is asked for them.
    assert not_a_server_error is not None
    known = {check.__name__: check for check in CHECKS.get_all()}
    assert set(known) | {"max_response_time"} == CHECK_NAMES | set(LEFT_OUT), "say what a new check is to do"
    return [known[name] for name in sorted(CHECK_NAMES)]


def cases(operation: Any, mode: GenerationMode) -> Any:
    """Requests to fit the document, or not to; None: nothing can be wrong with it."""
    takes_nothing = not operation.body and not list(operation.iter_parameters())
    if mode is GenerationMode.NEGATIVE and takes_nothing and not operation.definition.raw.get("security"):
        return None
    return operation.as_strategy(generation_mode=mode)


def test_the_document_has_every_route_with_its_statuses(served: Served) -> None:
    with served.http() as http:
        document = http.get("/api/openapi.json").json()
    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(described) == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = described[route.method, route.path]
        assert set(operation["responses"]) == {str(route.status), *map(str, route.problems)}
        assert operation["summary"], route.name
        assert set(route.problems) <= set(STATUS_OF_CODE.values())
        assert (401 in route.problems) == (not route.public or route.name in ("login", "refresh"))


def explore(made: Any, seed_: int, examples: int, look: Callable[[Any, Any], None]) -> None:
    """Give so many of these requests, and something to draw more from, to `look`."""

    @seed(seed_)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=made, data=st.data())
    def one(case: Any, data: st.DataObject) -> None:
        look(case, data.draw)

    one()


@pytest.mark.soak
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "breaks"])
def test_every_answer_is_one_the_document_knows(served: Served, rounds: Rounds, mode: GenerationMode) -> None:
    answers: Counter[tuple[str, int]] = Counter()
    examples = rounds.of(ci=8, soak=200)

    def ask(case: Any, draw: Any) -> None:
        served.luck(draw, case)
        answer = case.call(headers={"Authorization": f"Bearer {served.token}"}, timeout=LIMIT_S)
        answers[case.operation.label, answer.status_code] += 1
        assert answer.status_code not in NEVER
        case.validate_response(answer, checks=checks())
        if answer.status_code >= 400:
            is_a_problem(answer.status_code, answer.content)

    for seed_ in rounds.seeds(1):
        for operation in operations(served):
            made = None if is_stream(operation) else cases(operation, mode)
            if made is not None:
                explore(made, seed_, examples, ask)
    rounds.figure(f"requests made from the document ({mode.value})", sum(answers.values()), "requests")
    if mode is GenerationMode.POSITIVE:
        fine = {label for label, status in answers if status < 300}
        assert len(fine) >= 8, f"too few operations were ever carried out: {sorted(fine)}"
    assert len({status for _, status in answers}) >= 4


def is_stream(operation: Any) -> bool:
    """Whether its answer has no end."""
    return EVENTS in operation.definition.raw["responses"].get("200", {}).get("content", {})


def is_a_problem(status: int, content: bytes) -> None:
    """An error is a problem with a code of ours, and with the status of that code."""
    found = msgspec.json.decode(content, type=Problem)
    assert found.status == status
    assert STATUS_OF_CODE[found.code] == status
    assert found.detail


@pytest.mark.soak
def test_streams_begin_as_the_document_says(served: Served, rounds: Rounds) -> None:
    statuses: Counter[int] = Counter()
    examples = rounds.of(ci=10, soak=200)

    def listen(case: Any, draw: Any) -> None:
        served.luck(draw, case)
        headers = {name: value for name, value in (case.headers or {}).items() if name != "Authorization"}
        with (
            served.http() as http,
            http.stream("GET", case.formatted_path, params=case.query, headers=headers) as answer,
        ):
            statuses[answer.status_code] += 1
            assert str(answer.status_code) in case.operation.definition.raw["responses"]
            if answer.status_code == 200:
                assert answer.headers["content-type"].startswith(EVENTS)
                assert next(answer.iter_bytes()).startswith(b":\n\n")
            else:
                is_a_problem(answer.status_code, answer.read())

    for seed_ in rounds.seeds(2):
        streams = [operation for operation in operations(served) if is_stream(operation)]
        assert len(streams) == 2
        for operation in streams:
            explore(operation.as_strategy(), seed_, examples, listen)
    assert {200, 404} <= set(statuses)


def test_methods_and_paths_that_are_not_there(served: Served) -> None:
    with served.http() as http:
        for route in ROUTES:
            path = route.path.replace("{conversation}", "team").replace("{user}", "bob")
            there = {other.method for other in ROUTES if other.path == route.path}
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - there:
                answer = http.request(method, path)
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) >= {sorted(there)[0]}
                is_a_problem(405, answer.content)
        for path in ("/", "/api", "/api/", "/api/health/", "/api//health", "/api/ws", "/..", "/api/%2e%2e/x"):
            answer = http.get(path)
            assert answer.status_code == 404, path
            is_a_problem(404, answer.content)
