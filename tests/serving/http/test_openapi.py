"""The OpenAPI document: what it says is what the server does, whatever is thrown at it."""

from typing import Any

import hypothesis
import pytest
import schemathesis
from fake_room import FakeRoom
from schemathesis.specs.openapi.checks import positive_data_acceptance
from sites import Host, Site

from lssgen.serving.http.fields import Edit, Generation, JobFields
from lssgen.serving.http.openapi import openapi_document
from lssgen.serving.http.refusals import KINDS

DOCUMENT = openapi_document(keyed=False)
OPERATIONS = [
    (path, method)
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if path != "/v1/jobs/{id}/events"
]
FEW, MANY = 12, 150
"""Requests of every operation, among the quick tests and the slow ones."""


def fuzz(site: Site, path: str, method: str, count: int) -> None:
    """Throw requests at an operation, sensible and not, and see every answer against the document.

    That sensible data is accepted is not asked for: the schema cannot say which words fit a bundle.
    """
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.base_url = site.url

    strategy = schema[path][method].as_strategy()
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    @settings
    @hypothesis.given(case=strategy)
    def run(case: Any) -> None:
        case.call_and_validate(base_url=site.url, excluded_checks=[positive_data_acceptance], timeout=30)

    run()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_schemathesis_finds_nothing(site: Site, path: str, method: str) -> None:
    fuzz(site, path, method, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_schemathesis_finds_nothing_in_many_tries(host: Host, room: FakeRoom, path: str, method: str) -> None:
    del room
    with host() as site:
        fuzz(site, path, method, MANY)


def test_the_document_is_served_and_says_whether_keys_are_needed(site: Site) -> None:
    assert site.http.get("/openapi.json").json() == DOCUMENT
    assert DOCUMENT["security"] == []
    assert openapi_document(keyed=True)["security"] == [{"key": []}]


@pytest.mark.parametrize("kind", [Generation, Edit, JobFields])
def test_every_field_is_in_the_document_and_no_other_is_allowed(kind: Any) -> None:
    schema = DOCUMENT["components"]["schemas"][kind.__name__]
    assert set(schema["properties"]) == set(kind.__struct_fields__)
    assert schema["additionalProperties"] is False


def test_every_status_of_a_refusal_is_in_the_document() -> None:
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            assert {str(kind.status) for kind in KINDS.values()} <= set(operation["responses"])
