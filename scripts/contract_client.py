"""Drives now, adapt, reload and stop with the generated client (scripts/contract).

Usage: contract_client.py ADMIN_URL CONFIG_FILE PORT OPENAPI_YAML. The method of each call is found by its
`operationId` in the contract, so a renamed operation is followed and a missing one is an error."""

import inspect
import re
import sys
import urllib.request

import evergate_client
import evergate_client.api as apis
import yaml

ADMIN, CONFIG, PORT, CONTRACT = sys.argv[1:5]
PATHS = yaml.safe_load(open(CONTRACT))["paths"]
CLIENT = evergate_client.ApiClient(evergate_client.Configuration(host=ADMIN))


def operation(method: str, path: str):
    """The generated method of a call, in its form that shows status and headers, and the name of its body."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", PATHS[path][method]["operationId"]).lower()
    for value in vars(apis).values():
        if inspect.isclass(value) and hasattr(value, name):
            bound = getattr(value(CLIENT), f"{name}_with_http_info")
            known = [p for p in inspect.signature(bound).parameters if p in ("body", "request_body", "document")]
            return bound, (known or [None])[0]
    raise SystemExit(f"the client has no {name}")


def page() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=10) as answer:
        return answer.read().decode()


def plain(data):
    """Answers as dicts, whichever class the generator chose."""
    return data.to_dict() if hasattr(data, "to_dict") else data


now, _ = operation("get", "/now")
adapt, adapt_body = operation("post", "/adapt")
reload, reload_body = operation("post", "/reload")
stop, _ = operation("post", "/stop")

running = now()
assert running.status_code == 200, running
headers = {name.lower(): value for name, value in running.headers.items()}
document, etag = plain(running.data), headers["etag"]
assert document["http"]["hello"]["listen"] == [f"127.0.0.1:{PORT}"], document
print("now: generation", headers["evergate-generation"], "etag", etag)

document["http"]["hello"]["respond"] = "from the client"
answer = plain(adapt(**{adapt_body: document}).data)
assert answer["outcome"] == "adapted", answer
assert page() == "hello"
print("adapt:", answer["outcome"])

answer = reload(if_match=etag, **{reload_body: document})
assert answer.status_code == 200 and plain(answer.data)["outcome"] == "committed", answer
assert page() == "from the client"
print("reload:", plain(answer.data)["outcome"], "generation", plain(answer.data)["generation"])

try:
    reload(if_match=etag, **{reload_body: document})
    raise SystemExit("an old ETag was accepted")
except evergate_client.ApiException as refused:
    assert refused.status == 412, refused
    print("reload with the old ETag:", refused.status)

document["http"]["hello"]["proxy"] = "nobody"
try:
    adapt(**{adapt_body: document})
    raise SystemExit("a wrong document was accepted")
except evergate_client.ApiException as refused:
    assert refused.status == 422 and "/http/hello" in refused.body, refused
    print("adapt of a wrong document:", refused.status)

open(CONFIG, "a").write('\n[[http.hello.routes]]\nmatch.path = "/"\nrespond = "from the file"\n')
# The client names a content type even where it sends nothing, which the API refuses (an empty upload is a mistake).
CLIENT.select_header_content_type = lambda content_types: None
answer = plain(reload().data)
assert answer["outcome"] == "committed" and page() == "from the file", answer
print("reload of the file:", answer["outcome"])

answer = stop()
assert answer.status_code == 200, answer
print("stop:", plain(answer.data)["outcome"])
