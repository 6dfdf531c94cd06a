//! What `deploy/` and the documents say, held against the programs that will read it and the tests that they name.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ternfleet_tests::cluster::check_config;
use ternfleet_tests::program::{self, STORYTELLER};
use ternfleet_tests::server::{Watched, free_port};

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
    }
    // Nobody else on the machine reads the keys, and nothing is written over.
    use std::os::unix::fs::PermissionsExt as _;
    for secret in ["site.json", "ca.key", "coordinator/coordinator.creds", "coordinator/issuer.json"] {
        let mode = std::fs::metadata(site.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret} has mode {mode:o}");
    }
    let again = program::run(&init).unwrap();
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("holds a fleet's keys already"), "{again:?}");
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
    assert_eq!(version_after(&read("deploy/Dockerfile"), "FROM rust:"), rust, "Rust in the Dockerfile");
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
    let mut files =
        vec!["deploy/compose/compose.yaml", "deploy/kubernetes/ternfleet.yaml", "deploy/runpod/pod.json"];
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

/// The pod that the template orders is one that the provider's published API accepts.
#[test]
fn the_runpod_template_has_the_fields_of_the_published_api() {
    let template: serde_json::Value = serde_json::from_str(&read("deploy/runpod/pod.json")).unwrap();
    let api: serde_json::Value = serde_json::from_str(&read("cloud/tests/runpod/openapi.json")).unwrap();
    let schemas = &api["components"]["schemas"];
    let mut fields = BTreeSet::new();
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

/// A web server of one folder, gone with the test.
fn serve(folder: &Path) -> (Watched, String) {
    let port = free_port().unwrap();
    let server = Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Watched::new(server).unwrap();
    program::wait_for(std::time::Duration::from_secs(20), || {
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
    })
    .unwrap();
    (server, format!("http://127.0.0.1:{port}"))
}

fn bootstrap(model: &Path, settings: &[(&str, &str)]) -> Output {
    let mut script = Command::new(root().join("deploy/runpod/bootstrap.sh"));
    script.env("TERNFLEET", program::binary().unwrap()).env("MODEL_PATH", model).arg("--print-config");
    for name in ["MODEL_URL", "MODEL_SHA256", "MANIFEST_URL"] {
        script.env_remove(name);
    }
    script.envs(settings.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_pod_starts_with_the_right_model_and_with_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let served = Path::new(STORYTELLER).parent().unwrap();
    let (_server, url) = serve(served);
    let sha256 = {
        let output = Command::new("sha256sum").arg(STORYTELLER).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
    };
    let model = folder.path().join("models/model.gguf");
    let model_url = format!("{url}/storyteller.gguf");
    let manifest_url = format!("{url}/manifest.toml");
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();

    for (settings, fault) in [
        (vec![], "MODEL_SHA256 must be"),
        (vec![("MODEL_SHA256", sha256.as_str())], "mount the model there, or set MODEL_URL"),
        (vec![("MODEL_SHA256", &"0".repeat(64)), ("MODEL_URL", &model_url)], "it was deleted"),
    ] {
        let refused = bootstrap(&model, &settings);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains(fault), "{}", said(&refused));
        assert!(!model.exists() && !model.with_extension("gguf.part").exists());
    }

    // Half of it is there already: the download goes on.
    let bytes = std::fs::read(STORYTELLER).unwrap();
    let settings =
        [("MODEL_SHA256", sha256.as_str()), ("MODEL_URL", &model_url), ("MANIFEST_URL", &manifest_url)];
    let started = bootstrap(&model, &settings);
    assert!(started.status.success(), "{}", said(&started));
    assert_eq!(std::fs::read(&model).unwrap(), bytes);
    assert!(model.with_file_name("manifest.toml").exists());
    let configuration = String::from_utf8(started.stdout).unwrap();
    assert!(configuration.contains("engines = \"auto\"  # flag"), "{configuration}");
    assert!(configuration.contains(&format!("{}", model.display())), "{configuration}");

    // Mounted and wrong: nothing starts, and nothing is removed.
    std::fs::write(&model, "something else").unwrap();
    let refused = bootstrap(&model, &settings);
    assert!(said(&refused).contains("is not the model"), "{}", said(&refused));
    assert!(model.exists());
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
    for file in ["body.html", "page.js"] {
        let page = read(&format!("coordinator/src/gateway/page/{file}"));
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
