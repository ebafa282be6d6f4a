//! `admin-openapi.yaml` against the running server, in both directions: what is documented is served, what is served
//! is documented (that every answer seen by any test fits is checked by the kit itself).

use serde_json::Value;

use crate::kit::contract::{CONTRACT, METHODS, YAML, resolve};
use crate::kit::{Call, Gate};

#[test]
fn the_served_contract_is_the_file() {
    let gate = Gate::start("");
    let answer = gate.call(Call::get("/openapi.yaml"));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), *YAML);
}

#[test]
fn every_operation_has_an_id_and_every_reference_leads_somewhere() {
    assert!(CONTRACT["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = Vec::new();
    for (path, item) in CONTRACT["paths"].as_object().unwrap() {
        for (method, operation) in item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(m, _)| METHODS.contains(&m.as_str()))
        {
            let id = operation["operationId"]
                .as_str()
                .unwrap_or_else(|| panic!("{method} {path} has no operationId"));
            assert!(!ids.contains(&id), "{id} twice");
            ids.push(id);
            assert!(
                !operation["responses"].as_object().unwrap().is_empty(),
                "{method} {path}"
            );
        }
    }
    fn walk(value: &Value) {
        if value.get("$ref").is_some_and(Value::is_string) {
            resolve(value);
        }
        match value {
            Value::Object(table) => table.values().for_each(walk),
            Value::Array(items) => items.iter().for_each(walk),
            _ => {}
        }
    }
    walk(&CONTRACT);
}

/// Each documented call is served: never "no such path", never "no such method".
#[test]
fn every_documented_call_is_served() {
    let gate = Gate::start("[http.web]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n");
    for (path, item) in CONTRACT["paths"].as_object().unwrap() {
        let target = path
            .replace("{id}", "1")
            .replace("{swap}", "1")
            .replace("{section}", "http")
            .replace("{name}", "web")
            .replace("{list}", "listen")
            .replace("{item}", "0")
            .replace("{upstream}", "app")
            .replace("{target}", "127.0.0.1:1");
        assert!(
            !target.contains('{'),
            "a variable this test does not know: {path}"
        );
        for method in METHODS {
            let Some(operation) = item.get(method) else {
                continue;
            };
            // The one that ends the process is tested elsewhere; here it must be there to refuse a form.
            let call = match (method, path.as_str()) {
                ("get" | "head", _) => Call::new(&method.to_uppercase(), &target),
                _ => Call::new(&method.to_uppercase(), &target)
                    .body("application/x-www-form-urlencoded", "a=b"),
            };
            let documented = operation["responses"].as_object().unwrap();
            let only_405 = documented
                .keys()
                .all(|k| matches!(k.as_str(), "405" | "401" | "403"));
            let answer = gate.call(call);
            assert_ne!(answer.status, 404, "{method} {path}: {}", answer.text());
            assert_eq!(
                answer.status == 405,
                only_405,
                "{method} {path}: {}",
                answer.text()
            );
        }
    }
}

/// Each served path is documented: the neighbours of documented ones are not there.
#[test]
fn nothing_beyond_the_contract_is_served() {
    let gate = Gate::start("");
    for path in [
        "/",
        "/config",
        "/config/",
        "/events",
        "/generations",
        "/rollback",
        "/confirm",
        "/metrics",
        "/upgrade",
        "/certificates/",
        "/explain",
        "/sessions/",
        "/tunnels/",
        "/dashboard",
        "/reload/",
        "/now//",
        "/debug",
        "/openapi.json",
    ] {
        for method in ["GET", "POST"] {
            // The kit refuses an answer to what is not in the contract, unless it is 404 or 405.
            gate.call(Call::new(method, path));
        }
    }
    for path in CONTRACT["paths"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|p| !p.contains('{'))
    {
        for method in ["PUT", "DELETE", "PATCH"] {
            gate.call(Call::new(method, path));
        }
    }
}

#[test]
fn the_schema_is_a_schema_and_takes_what_runs() {
    let gate = Gate::start("[http.web]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n");
    let schema = gate.call(Call::get("/schema.json")).expect(200);
    let validator = jsonschema::validator_for(&schema).unwrap();
    for target in ["/now", "/now?defaults=true"] {
        let now = gate.call(Call::get(target)).expect(200);
        let errors: Vec<String> = validator
            .iter_errors(&now)
            .map(|e| format!("{e} at {}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{target}: {errors:?}");
    }
    assert!(!validator.is_valid(&serde_json::json!({ "http": { "web": { "listen": 5 } } })));
}
