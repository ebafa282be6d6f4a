#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::SignatureScheme;

use super::choose::Chooser;
use super::store::{Certificate, Fault, Material, Readings, Wanted};
use super::{Presented, Server, Shared};
use crate::config::Format;
use crate::config::http::{Alpn, ClientAuthMode, TlsVersion};
use crate::document::{Context, Document};

/// PEM texts of a certificate and its key.
fn pair(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
    (certificate.unwrap().pem(), key.serialize_pem())
}

fn document(tls: &str) -> Document {
    let text =
        format!("[http.web]\nlisten = '127.0.0.1:8443'\nrespond = 'x'\n[http.web.tls]\n{tls}\n");
    let context = Context {
        base: "/base".into(),
        running: None,
    };
    let parsed = Document::parse(text.as_bytes(), Format::Toml, &context);
    Arc::unwrap_or_clone(parsed.unwrap().document)
}

fn files(named: &[(&str, &str)]) -> HashMap<PathBuf, Bytes> {
    named
        .iter()
        .map(|(path, text)| (PathBuf::from(path), Bytes::copy_from_slice(text.as_bytes())))
        .collect()
}

fn load(tls: &str, named: &[(&str, &str)]) -> Result<(Material, Vec<Fault>), Vec<Fault>> {
    let shared = Shared::new().unwrap();
    Material::load(Wanted::http(&document(tls)), &files(named), None, &shared)
}

/// The first name of each certificate, as a chooser's table.
fn chooser(all: &[&[&str]]) -> Chooser {
    let texts: Vec<(String, String)> = all.iter().map(|names| pair(names)).collect();
    let certificates: Vec<Arc<Certificate>> = texts
        .iter()
        .map(|(cert, key)| {
            let named = [("/base/a.crt", &**cert), ("/base/a.key", &**key)];
            let (material, _) =
                load("certificates = { cert = 'a.crt', key = 'a.key' }", &named).unwrap();
            material.of("web")[0].clone()
        })
        .collect();
    Chooser::new(&certificates)
}

#[test]
fn a_name_gets_the_exact_certificate_then_the_longest_wildcard_then_the_first() {
    let all: &[&[&str]] = &[
        &["first.test"],
        &["*.a.test"],
        &["*.b.a.test", "b.a.test"],
        &["www.a.test", "a.test"],
        &["www.a.test"],
    ];
    let chooser = chooser(all);
    let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
    let position = |name: Option<&str>| {
        let picked = chooser.pick(name, &schemes).unwrap();
        let all = (0..all.len()).map(|i| chooser.at(i));
        all.into_iter()
            .position(|c| Arc::ptr_eq(c, picked))
            .unwrap()
    };
    for (name, expected) in [
        (None, 0),
        (Some("first.test"), 0),
        (Some("unknown.test"), 0),
        (Some("x.a.test"), 1),
        (Some("X.A.test"), 1),
        // No client would take it, but it is the nearest.
        (Some("y.x.a.test"), 1),
        (Some("x.b.a.test"), 2),
        (Some("b.a.test"), 2),
        (Some("www.a.test"), 3),
        (Some("a.test"), 3),
    ] {
        assert_eq!(position(name), expected, "{name:?}");
    }
}

#[test]
fn among_several_for_one_name_the_first_that_the_client_can_verify_is_taken() {
    let with = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let (ed, ec) = (with(&PKCS_ED25519), with(&PKCS_ECDSA_P256_SHA256));
    let named = [
        ("/base/ed.crt", &*ed.0),
        ("/base/ed.key", &*ed.1),
        ("/base/p.crt", &*ec.0),
        ("/base/p.key", &*ec.1),
    ];
    let (material, _) = load("certificates = { dir = '/base' }", &named).unwrap();
    let all = material.of("web");
    let chooser = Chooser::new(all);
    let pick = |scheme| chooser.pick(Some("a.test"), &[scheme]).unwrap();
    assert!(Arc::ptr_eq(pick(SignatureScheme::ED25519), &all[0]));
    assert!(Arc::ptr_eq(
        pick(SignatureScheme::ECDSA_NISTP256_SHA256),
        &all[1]
    ));
    // None fits: rustls says so.
    assert!(Arc::ptr_eq(
        pick(SignatureScheme::RSA_PKCS1_SHA256),
        &all[0]
    ));
}

#[test]
fn a_certificate_is_good_for_its_names_and_one_label_under_its_wildcards() {
    let (cert, key) = pair(&["a.test", "*.b.test"]);
    let named = [("/base/a.crt", &*cert), ("/base/a.key", &*key)];
    let shared = Shared::new().unwrap();
    let document = document("certificates = { dir = '.' }");
    let (material, warnings) =
        Material::load(Wanted::http(&document), &files(&named), None, &shared).unwrap();
    assert!(warnings.is_empty());
    let connection = &document.http["web"].connection;
    let presented = [Presented {
        hosts: &[],
        certificates: material.of("web"),
        client_auth: None,
    }];
    let oldest = connection.tls.unwrap();
    let server = Server::new(&presented, oldest, &connection.alpn, &shared).unwrap();
    for (host, good) in [
        ("a.test", true),
        ("x.b.test", true),
        ("b.test", false),
        (".b.test", false),
        ("y.x.b.test", false),
        ("c.test", false),
    ] {
        assert_eq!(server.shares("a.test", host), good, "{host}");
    }
}

#[test]
fn what_did_not_change_is_not_made_again() {
    let (cert, key) = pair(&["a.test"]);
    let other = pair(&["b.test"]);
    let shared = Shared::new().unwrap();
    let document = document("certificates = { dir = '.' }\nself_signed = ['localhost', '::1']");
    let mut named = vec![("/base/a.crt", &*cert), ("/base/a.key", &*key)];
    let load = |named: &[(&str, &str)], before: Option<&Material>| {
        let files = files(named);
        Material::load(Wanted::http(&document), &files, before, &shared)
            .unwrap()
            .0
    };
    let first = load(&named, None);
    named.extend([("/base/b.crt", &*other.0), ("/base/b.key", &*other.1)]);
    let second = load(&named, Some(&first));
    assert_eq!((first.of("web").len(), second.of("web").len()), (2, 3));
    assert!(Arc::ptr_eq(&first.of("web")[0], &second.of("web")[0]));
    // The one that is made at start is made once.
    assert!(Arc::ptr_eq(&first.of("web")[1], &second.of("web")[2]));
}

#[test]
fn what_is_wrong_with_a_pair_is_said_at_its_place() {
    let (cert, key) = pair(&["a.test"]);
    let (_, other) = pair(&["a.test"]);
    let rot = cert.replace('M', "!");
    let not_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let table: &[(&str, &str, &str, &str)] = &[
        (&cert, &other, "key", "is not the key of /base/a.crt"),
        ("", &key, "cert", "holds no certificate"),
        (&key, &key, "cert", "holds no certificate"),
        (&rot, &key, "cert", "is not valid PEM"),
        (not_x509, &key, "cert", "is no X.509 certificate"),
        (&cert, "", "key", "holds no private key"),
        (&cert, &cert, "key", "holds no private key"),
        (&cert, encrypted, "key", "is encrypted"),
        (&cert, no_key, "key", "cannot be used"),
    ];
    for (cert, key, place, expected) in table {
        let named = [("/base/a.crt", *cert), ("/base/a.key", *key)];
        let faults = load("certificates = { cert = 'a.crt', key = 'a.key' }", &named).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(
            faults[0].pointer,
            format!("/http/web/tls/certificates/0/{place}")
        );
        assert!(
            faults[0].message.contains(expected),
            "{faults:?} without {expected}"
        );
    }
    let faults = load("certificates = { dir = 'empty' }", &[]).unwrap_err();
    assert_eq!(faults[0].pointer, "/http/web/tls/certificates/0/dir");
    assert_eq!(faults[0].message, "/base/empty has no certificates");
}

#[test]
fn one_that_is_not_valid_now_is_a_warning() {
    for (from, to, word) in [
        (2001, 2002, "expired at 2002"),
        (3001, 3002, "is not valid before 3001"),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let cert = params.self_signed(&key).unwrap().pem();
        let named = [
            ("/base/a.crt", &*cert),
            ("/base/a.key", &*key.serialize_pem()),
        ];
        let (_, warnings) =
            load("certificates = { cert = 'a.crt', key = 'a.key' }", &named).unwrap();
        assert_eq!(warnings[0].pointer, "/http/web/tls/certificates/0/cert");
        assert!(warnings[0].message.contains(word), "{warnings:?}");
    }
}

#[test]
fn what_cannot_be_used_stays_as_it_was_each_pair_for_itself() {
    let (one, two, other) = (
        pair(&["one.test"]),
        pair(&["two.test"]),
        pair(&["one.test"]),
    );
    let shared = Shared::new().unwrap();
    let document = document("certificates = { dir = '.' }");
    let named = [
        ("/base/one.crt", &*one.0),
        ("/base/one.key", &*one.1),
        ("/base/two.crt", &*two.0),
        ("/base/two.key", &*two.1),
    ];
    let old = files(&named);
    let (before, _) = Material::load(Wanted::http(&document), &old, None, &shared).unwrap();
    let renew = |named: &[(&str, &str)], failed: &[(&str, &str)], before: &Material| {
        let failed = failed
            .iter()
            .map(|(path, why)| (PathBuf::from(path), (*why).to_owned()));
        let read = Readings {
            files: files(named),
            failed: failed.collect(),
        };
        Material::renew(Wanted::http(&document), &read, before, &old, &shared)
    };
    // A key that does not fit, a good renewal, a new one that is none.
    let next = pair(&["two.test", "more.test"]);
    let renewed = renew(
        &[
            ("/base/one.crt", &one.0),
            ("/base/one.key", &other.1),
            ("/base/two.crt", &next.0),
            ("/base/two.key", &next.1),
            ("/base/bad.crt", "nothing"),
        ],
        &[("/base/bad.key", "not found")],
        &before,
    );
    let material = &renewed.material;
    let all = material.of("web");
    assert_eq!(all.len(), 2);
    assert!(Arc::ptr_eq(&all[0], &before.of("web")[0]));
    assert_eq!(all[1].names(), ["two.test", "more.test"]);
    assert_eq!(material.kept_out.len(), 2, "{:?}", material.kept_out);
    assert!(!material.same(&before, "web") && material.same(&material.clone(), "web"));
    let errors: Vec<bool> = material
        .all()
        .map(|(.., place)| place.error.is_some())
        .collect();
    assert_eq!(errors, [true, false]);
    // The files that it is made of are those that serve.
    let file = |path: &str| renewed.files.get(std::path::Path::new(path)).cloned();
    assert_eq!(file("/base/one.key").unwrap(), one.1.as_bytes());
    assert_eq!(file("/base/two.crt").unwrap(), next.0.as_bytes());
    assert_eq!(file("/base/bad.crt"), None);
    // The folder cannot be read at all.
    let renewed = renew(&[], &[("/base", "gone")], &before);
    assert!(renewed.material.same(&before, "web"));
    assert_eq!(renewed.files, old);
    assert_eq!(
        renewed.material.kept_out[0].pointer,
        "/http/web/tls/certificates/0/dir"
    );
    // Mended: nothing is said any more, and what did not change is the same.
    let renewed = renew(&named, &[], &renewed.material);
    assert!(renewed.material.same(&before, "web") && renewed.material.kept_out.is_empty());
}

#[test]
fn a_name_is_asked_as_its_server_wants_and_an_exchange_counts_from_then_on() {
    let ca = pair(&["ca.test"]).0;
    let tls = |name: &str, mode: &str| {
        let auth = match mode {
            "" => String::new(),
            mode => format!("client_auth = {{ ca = 'ca.pem', mode = '{mode}' }}"),
        };
        format!(
            "[http.{name}]\nlisten = '127.0.0.1:8443'\nhosts = ['{name}.test', '*.{name}.test']\nrespond = 'x'\n\
             [http.{name}.tls]\nself_signed = '{name}.test'\n{auth}\n"
        )
    };
    let text = [
        tls("a", ""),
        tls("b", "request"),
        tls("c", "require"),
        tls("d", "require"),
    ];
    let context = Context {
        base: "/base".into(),
        running: None,
    };
    let document = Document::parse(text.concat().as_bytes(), Format::Toml, &context)
        .unwrap()
        .document;
    let shared = Shared::new().unwrap();
    let files = files(&[("/base/ca.pem", &ca)]);
    let (material, _) = Material::load(Wanted::http(&document), &files, None, &shared).unwrap();
    let presented = |names: &[&str]| -> Server {
        let all: Vec<_> = names
            .iter()
            .map(|name| Presented {
                hosts: &document.http[*name].hosts,
                certificates: material.of(name),
                client_auth: material.client_auth(name),
            })
            .collect();
        Server::new(&all, TlsVersion::V12, &[Alpn::Http1], &shared).unwrap()
    };
    let server = presented(&["a", "b", "c", "d"]);
    let asked = |server: &Server, sni: Option<&str>| {
        server.handshake(sni).client_auth.map(|auth| auth.mode)
    };
    for (sni, mode) in [
        (None, None),
        (Some("nobody.test"), None),
        (Some("a.test"), None),
        (Some("b.test"), Some(ClientAuthMode::Request)),
        (Some("x.y.B.test"), Some(ClientAuthMode::Request)),
        (Some("c.test"), Some(ClientAuthMode::Require)),
    ] {
        assert_eq!(asked(&server, sni), mode, "{sni:?}");
    }
    // What is the same is one configuration, and one set of ticket keys.
    let config = |sni| server.handshake(Some(sni)).config;
    assert!(Arc::ptr_eq(&config("c.test"), &config("d.test")));
    let tickets = |sni| config(sni).ticketer.clone();
    assert!(!Arc::ptr_eq(&tickets("a.test"), &tickets("b.test")));
    assert!(!Arc::ptr_eq(&tickets("b.test"), &tickets("c.test")));
    server.exchange(presented(&["c"]));
    assert_eq!(asked(&server, None), Some(ClientAuthMode::Require));
    // Its sessions go on.
    let before = tickets("c.test");
    server.exchange(presented(&["b", "c"]));
    assert!(Arc::ptr_eq(&before, &tickets("c.test")));
}

#[test]
fn a_certificate_of_ours_is_made_anew_when_it_is_about_to_end() {
    let state = tempfile::tempdir().unwrap();
    let shared = Shared::new()
        .unwrap()
        .with_state_folder(Some(state.path().to_owned()));
    let names = ["localhost".to_owned()];
    let make = |good: bool| shared.local(&names, |_| good).0.unwrap();
    let (first, by_ca) = make(true);
    assert!(by_ca && Arc::ptr_eq(&first, &make(true).0));
    assert!(!Arc::ptr_eq(&first, &make(false).0));
    // Nowhere to keep a CA: it is said, and the certificate signs itself.
    let shared = Shared::new().unwrap().with_state_folder(None);
    let (made, why) = shared.local(&names, |_| true);
    assert!(!made.unwrap().1 && why.is_some());
}
