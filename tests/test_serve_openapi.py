"""The server's own OpenAPI is true: what it says of requests, codes and answers holds for any JSON.

schemathesis would do this, but it wants other versions of hypothesis or pytest than the lower bounds of `setup.cfg`.
"""

import json

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
jsonschema = pytest.importorskip("jsonschema")
from fastapi.testclient import TestClient  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from test_rows_of_any_kind import ROWS, loaded  # noqa: E402

from sparserm_hf.serve.app import create_app  # noqa: E402

EXAMPLES = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
ENDPOINTS = ["/get_reward", "/classify", "/score", "/explain"]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client():
    with TestClient(
        create_app(*loaded(), "model"), base_url="http://localhost", raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def openapi(client):
    return client.get("/openapi.json").json()


def bodies(openapi, schema):
    """JSON values that a schema allows; rows are sometimes ones that can be scored."""
    if "$ref" in schema:
        return bodies(openapi, openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of(*(bodies(openapi, option) for option in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        most = min(schema.get("maxItems", 3), 3)
        return st.lists(bodies(openapi, schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
    if kind == "object" and "properties" in schema:
        fields = {name: bodies(openapi, field) for name, field in schema["properties"].items()}
        required = set(schema.get("required", ()))
        optional = {name: field for name, field in fields.items() if name not in required}
        return st.fixed_dictionaries({name: fields[name] for name in fields if name in required}, optional=optional)
    if kind == "object":
        return ROWS | st.dictionaries(st.text(max_size=8), ANY, max_size=3)
    simple = {"string": st.text(max_size=20), "integer": st.integers(schema.get("minimum"), 100), "null": st.none()}
    return simple.get(kind, ANY)


def check(openapi, path, method, answer):
    """An answer has a code, a media type and a form that the OpenAPI names."""
    told = openapi["paths"][path][method]["responses"]
    assert str(answer.status_code) in told, (path, answer.status_code, answer.text)
    media = answer.headers["content-type"].partition(";")[0]
    content = told[str(answer.status_code)]["content"]
    assert media in content, (path, media)
    if media == "application/json":
        schema = content[media]["schema"] | {"components": openapi["components"]}
        jsonschema.validate(json.loads(answer.content, parse_constant=pytest.fail), schema)
    if answer.status_code >= 400:
        assert list(answer.json()) == ["error"]
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("path", ENDPOINTS)
def test_what_the_schema_allows_is_answered_as_it_says(client, openapi, path):
    schema = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    codes = set()

    @EXAMPLES
    @given(body=bodies(openapi, schema))
    def ask(body):
        answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        check(openapi, path, "post", answer)
        codes.add(answer.status_code)

    ask()
    assert 200 in codes


@pytest.mark.parametrize("path", ENDPOINTS)
def test_any_other_json_is_refused_as_it_says(client, openapi, path):
    schema = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema | {"components": openapi["components"]})

    @EXAMPLES
    @given(body=ANY)
    def ask(body):
        if validator.is_valid(body):
            return
        answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        check(openapi, path, "post", answer)
        assert answer.status_code == 422

    ask()


def test_every_endpoint_is_told_and_refuses_other_methods(client, openapi):
    assert set(openapi["paths"]) == {*ENDPOINTS, "/health", "/metrics"}
    for path, operations in openapi["paths"].items():
        for method in ("get", "post", "put", "patch", "delete", "options"):
            answer = client.request(method, path)
            if method in operations:
                check(openapi, path, method, answer)
            else:
                assert answer.status_code == 405 and list(answer.json()) == ["error"], (path, method)
                assert answer.headers["allow"] == ", ".join(operations).upper()
