"""Hooks for schemathesis (scripts/contract): whatever document it makes up, the server stays where it is.

A random document may be a valid one, and then really replaces what runs: without this the first `{}` would move the
admin address to its default and the rest of the run would talk to nobody."""

import json
import os

import schemathesis

ADMIN = os.environ["EVERGATE_CONTRACT_ADMIN"]


@schemathesis.serializer("application/toml")
def toml(ctx, value):
    return as_text(value)


@schemathesis.serializer("application/yaml")
def yaml(ctx, value):
    return as_text(value)


def as_text(value):
    """JSON is YAML; for TOML it is a fine piece of bad syntax."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return json.dumps(value).encode()


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.path != "/reload":
        return
    if isinstance(case.body, dict):
        admin = case.body.get("admin")
        case.body["admin"] = {**(admin if isinstance(admin, dict) else {}), "listen": ADMIN}
        for key in ("token", "tokens", "allowed_hosts"):
            case.body["admin"].pop(key, None)
    else:
        # No body is a reload of the file, which is fine; a text might be a whole document: it must not take.
        case.headers = {**(case.headers or {}), "If-Match": '"never"'}
