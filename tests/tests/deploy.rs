//! What `deploy/` and the documents say, held against the programs that will read it and the tests that they name.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[path = "deploy/pod.rs"]
mod pod;
#[path = "deploy/wheel.rs"]
mod wheel;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use ternfleet_tests::cluster::check_config;
use ternfleet_tests::program;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The word after `before` in `text`, up to the first character that a version does not have.
fn version_after(text: &str, before: &str) -> String {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{before:?} is not there"));
    rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

#[test]
fn nats_server_itself_accepts_every_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["deploy/nats/single.conf", "deploy/compose/nats.conf"] {
        let text = read(file).replace("/data/jetstream", &folder.path().display().to_string());
        let copy = folder.path().join("nats.conf");
        std::fs::write(&copy, &text).unwrap();
        check_config(&copy).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains("sync_interval: always"), "{file} acknowledges what is not on disk");
    }
    // And finds fault where there is one: the check is a check.
    let broken = folder.path().join("broken.conf");
    std::fs::write(&broken, "jetstream { sync_intervall: always }\n").unwrap();
    assert!(check_config(&broken).is_err());
}

#[test]
fn nats_server_itself_accepts_what_init_writes() {
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().join("site");
    let (tls, store) = (folder.path().join("tls"), folder.path().join("js"));
    let text = |path: &Path| path.display().to_string();
    let init = [
        "nats",
        "init",
        "--dir",
        &text(&site),
        "--tls-dir",
        &text(&tls),
        "--store-dir",
        &text(&store),
        "--node",
        "a=nats-a.example.net",
        "--node",
        "b=nats-b.example.net",
        "--node",
        "c=10.0.0.3",
        "--public",
        "c=fleet.example.net:41022",
    ];
    let made = program::run(&init).unwrap();
    assert_eq!(made.code, Some(0), "{made:?}");
    for node in ["a", "b", "c"] {
        let server = site.join("servers").join(node);
        std::fs::create_dir_all(&tls).unwrap();
        for file in ["server.crt", "server.key", "ca.crt"] {
            std::fs::copy(server.join(file), tls.join(file)).unwrap();
        }
        check_config(&server.join("nats.conf")).unwrap();
        // Clients are told the address that the certificate has, and no other.
        let text = std::fs::read_to_string(server.join("nats.conf")).unwrap();
        let told = if node == "c" { "fleet.example.net:41022" } else { "nats-" };
        assert!(text.contains(&format!("client_advertise: \"{told}")), "{text}");
        assert!(text.contains("no_advertise: true"), "{text}");
        let certificate = Command::new("openssl")
            .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
            .arg(server.join("server.crt"))
            .output();
        // Where there is no openssl, the servers of the other tests hold their certificates against their names.
        if let Ok(certificate) = certificate {
            let names = String::from_utf8_lossy(&certificate.stdout).into_owned();
            assert_eq!(names.contains("DNS:fleet.example.net"), node == "c", "{names}");
        }
    }
    // Nobody else on the machine reads the keys, and nothing is written over.
    use std::os::unix::fs::PermissionsExt as _;
    for secret in ["site.json", "ca.key", "coordinator/coordinator.creds", "coordinator/issuer.json"] {
        let mode = std::fs::metadata(site.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret} has mode {mode:o}");
    }
    let again = program::run(&init).unwrap();
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("already contains keys of a fleet"), "{again:?}");
}

#[test]
fn versions_agree_across_files() {
    let nats = version_after(&read("scripts/fetch-nats-server.sh"), "\nversion=");
    assert_eq!(
        version_after(&read("deploy/compose/compose.yaml"), "image: nats:"),
        nats,
        "nats-server in compose.yaml"
    );
    assert_eq!(
        version_after(&read("docs/operations.md"), "nats-server "),
        nats,
        "nats-server in docs/operations.md"
    );
    let rust = version_after(&read("Cargo.toml"), "rust-version = \"");
    assert_eq!(
        version_after(&read("deploy/Dockerfile"), "FROM docker.io/library/rust:"),
        rust,
        "Rust in the Dockerfile"
    );
    assert_eq!(version_after(&read("README.md"), "a Rust toolchain ("), rust, "Rust in the README");
    let said = program::run(&["--version"]).unwrap().stdout;
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
}

/// Every key that a unit's or the compose file's environment sets is one that the service knows.
#[test]
fn services_know_every_setting_that_they_are_given() {
    let known = |service: &str| {
        let printed = program::run(&[service, "--print-config"]).unwrap();
        assert_eq!(printed.code, Some(0), "{printed:?}");
        let key = |line: &str| {
            let line = line.trim_start_matches("# ");
            line.split([' ', '=']).next().unwrap().to_uppercase()
        };
        printed.stdout.lines().map(key).collect::<BTreeSet<String>>()
    };
    let (coordinator, worker) = (known("coordinator"), known("worker"));
    let mut files = vec!["deploy/compose/compose.yaml", "deploy/kubernetes/base/ternfleet.yaml"];
    files.extend(["deploy/systemd/coordinator.env.sample", "deploy/systemd/worker.env.sample"]);
    for file in files {
        for found in read(file).split("TERNFLEET_").skip(1) {
            let key: String = found.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let first = key.split("__").next().unwrap();
            assert!(
                coordinator.contains(first) || worker.contains(first),
                "{file} sets TERNFLEET_{key}, which no service knows"
            );
        }
    }
}

/// The pod that the template orders is one that the provider's published API accepts, newer fields included.
#[test]
fn the_runpod_template_has_the_fields_of_the_published_api() {
    let template: serde_json::Value = serde_json::from_str(&read("deploy/runpod/pod.json")).unwrap();
    let api: serde_json::Value = serde_json::from_str(&read("cloud/tests/runpod/openapi.json")).unwrap();
    let newer: serde_json::Value = serde_json::from_str(&read("cloud/tests/runpod/newer.json")).unwrap();
    let schemas = &api["components"]["schemas"];
    let mut fields: BTreeSet<String> =
        newer["CreatePodRequest"].as_object().unwrap().keys().cloned().collect();
    collect_fields(&schemas["CreatePodRequest"], schemas, &mut fields);
    for field in template.as_object().unwrap().keys() {
        assert!(fields.contains(field), "the API knows no field {field}: {fields:?}");
    }
}

/// Property names of a schema, through `allOf`, `oneOf`, `anyOf` and references.
fn collect_fields(schema: &serde_json::Value, all: &serde_json::Value, fields: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        collect_fields(&all[name], all, fields);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        schema[key].as_array().into_iter().flatten().for_each(|part| collect_fields(part, all, fields));
    }
    fields.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
}

/// Each defence names the test that proves it; a name that is not there proves nothing.
#[test]
fn every_test_that_the_documents_name_exists() {
    let mut faults = Vec::new();
    let mut named = 0;
    for document in ["docs/security.md", "docs/upgrades.md", "docs/operations.md"] {
        for (at, line) in read(document).lines().enumerate() {
            for reference in line.split('`').skip(1).step_by(2).filter(|text| text.contains("::")) {
                let (file, test) = reference.rsplit_once("::").unwrap();
                if !file.ends_with(".rs") && !file.ends_with(".py") && !file.ends_with(".sh") {
                    continue;
                }
                named += 1;
                let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
                if !text.contains(&format!("fn {test}(")) && !text.contains(&format!("def {test}(")) {
                    faults.push(format!("{document}:{}: {reference} is not there", at + 1));
                }
            }
        }
    }
    assert!(named >= 20, "only {named} tests are named");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_page_parses_no_text_as_html() {
    let files = std::fs::read_dir(root().join("coordinator/src/gateway/page")).unwrap();
    for file in files.map(|file| file.unwrap().path()) {
        let page = std::fs::read_to_string(&file).unwrap();
        let file = file.display();
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!page.contains(way), "{file} uses {way}");
        }
    }
}

#[test]
fn the_bill_of_materials_names_every_library_of_the_binary() {
    let output = Command::new("python3").arg(root().join("scripts/sbom.py")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bill: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components.iter().map(|one| one["name"].as_str().unwrap()).collect();
    for expected in ["async-nats", "tokenizers", "ternfleet-engine"] {
        assert!(names.contains(expected), "{expected} is missing");
    }
    for absent in ["proptest", "ternfleet-tests"] {
        assert!(!names.contains(absent), "{absent} is in no binary");
    }
    assert!(components.iter().all(|one| one["licenses"].is_array()), "a library without a licence");
}

/// The script for a card as it stands, on the interpreter, without what compiles: the same tokens on both devices, and files
/// of figures.
#[test]
fn the_first_script_for_a_card_runs_on_the_interpreter() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("tiny.gguf"), folder.path().join("out"));
    let shape = ["model", "synth", "--shape", "llama:1x128x128x2x1x512", "--seed", "1", "--out"];
    let made = program::run(&[&shape[..], &[&model.display().to_string()]].concat()).unwrap();
    assert_eq!(made.code, Some(0), "{made:?}");
    let output = Command::new(root().join("docs/benchmarks/gpu/first.sh"))
        .env("BIN", program::binary().unwrap())
        .env("OUT", &out)
        .env("MODEL", &model)
        .envs([("DEVICE", "interpreter"), ("GATE", ""), ("PROMPT", "1"), ("GEN", "1")])
        .envs([("BATCH", "1,2"), ("LARGE", "65"), ("CONTEXT", "8")])
        .output()
        .unwrap();
    let said = format!("{output:?}");
    assert!(output.status.success() && said.contains("bits: equal"), "{said}");
    for name in ["batches", "large", "long"] {
        let report =
            std::fs::read_to_string(out.join(format!("{name}.json"))).unwrap_or_else(|_| panic!("{said}"));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["batch"][0]["tok_s"].as_f64().is_some_and(|rate| rate > 0.0), "{name}: {report}");
    }
    let tokens = std::fs::read_to_string(out.join("tokens.txt")).unwrap();
    assert_eq!(tokens.lines().count(), 3, "{tokens}");
    assert!(std::fs::read_to_string(out.join("machine.txt")).unwrap().starts_with("ternfleet "));
}
