//! `ternfleet model pull|list|verify` against a server that drops connections, lies, and serves the wrong thing.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ternfleet_engine::gguf;
use ternfleet_text::{Manifest, TokenType};

use super::server::{Asked, Reply, Server};
use super::{Ended, run_with, storyteller};

const MANIFEST: &str = include_str!("../../../models/storyteller/manifest.toml");

/// The storyteller's file, which is large enough for many chunks.
fn file() -> Vec<u8> {
    std::fs::read(storyteller()).unwrap()
}

/// A folder for models, and a manifest of the storyteller under another name, to be fetched from a server.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// `edit` may change the manifest.
    fn new(url: &str, edit: impl Fn(String) -> String) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let text = MANIFEST
            .replace("name = \"storyteller\"", "name = \"guest\"")
            .replace("file = \"storyteller.gguf\"", &format!("file = \"storyteller.gguf\"\nurl = \"{url}\""));
        assert_ne!(text, MANIFEST);
        std::fs::write(folder.path().join("guest.toml"), edit(text)).unwrap();
        Place { folder }
    }

    fn of(server: &Server) -> Place {
        Place::new(&server.url("/org/model.gguf"), |text| text)
    }

    fn manifest(&self) -> String {
        self.folder.path().join("guest.toml").display().to_string()
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    fn model(&self) -> PathBuf {
        self.models().join("guest/storyteller.gguf")
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![("TERNFLEET_MODEL_DIR", self.models().display().to_string())];
        // Nothing of the machine's own leads a request elsewhere.
        for name in
            ["HF_TOKEN", "HF_ENDPOINT", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"]
        {
            all.push((name, String::new()));
        }
        all.push(("NO_PROXY", "*".to_owned()));
        all
    }

    fn run(&self, more: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let own = self.environment();
        let mut environment: Vec<(&str, &str)> =
            own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        environment.retain(|(name, value)| !value.is_empty() || *name == "HF_TOKEN");
        environment.extend(more);
        run_with(&environment, arguments)
    }

    fn pull(&self, more: &[&str]) -> Ended {
        self.pull_as(&[], more)
    }

    fn pull_as(&self, environment: &[(&str, &str)], more: &[&str]) -> Ended {
        let manifest = self.manifest();
        self.run(environment, &[&["model", "pull", "--manifest", &manifest, "--retries", "2"], more].concat())
    }

    /// In the background, to be killed.
    fn pull_beside(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_ternfleet"))
            .args(["model", "pull", "--manifest", &self.manifest()])
            .env("TERNFLEET_MODEL_DIR", self.models())
            .env("NO_PROXY", "*")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Files in the model's folder, without the lock.
    fn left(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.models().join("guest")) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != ".lock").collect();
        names.sort();
        names
    }
}

fn came(ended: &Ended, place: &Place) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.trim(), place.model().display().to_string());
    assert!(std::fs::read(place.model()).unwrap() == file(), "the file is another");
    assert_eq!(place.left(), ["digest.json", "manifest.toml", "storyteller.gguf"]);
}

fn refused(ended: &Ended, words: &[&str]) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in: {}", ended.stderr);
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_model_is_pulled_once_listed_verified_and_run_by_its_name() {
    let server = Server::start(file(), |_| Reply::Honest);
    let place = Place::of(&server);
    let absent = place.run(&[], &["generate", "--model", "guest", "-p", "x"]);
    refused(&absent, &["no model file guest", "model list"]);

    came(&place.pull(&[]), &place);
    // The first request asks for one byte; the chunks come once each.
    assert_eq!(server.bytes_sent(), file().len() + 1);
    assert!(server.asked().len() > 10, "in chunks");

    let list = place.run(&[], &["model", "list", "--json"]).json();
    let rows = list.as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "guest").unwrap();
    assert_eq!(
        (row["verified"].as_bool(), row["bytes_here"].as_u64()),
        (Some(true), Some(file().len() as u64))
    );
    assert!(rows.iter().any(|row| row["name"] == "bitnet-b1.58-2B-4T" && row["path"].is_null()));
    let told = place.run(&[], &["model", "list"]).stdout;
    assert!(told.contains("downloaded, verified") && told.contains("not supported by this engine"), "{told}");

    let n_asked = server.asked().len();
    let again = place.pull(&["--json"]).json();
    assert_eq!((again["fetched"].as_bool(), again["verified"].as_bool()), (Some(false), Some(true)));
    assert_eq!(server.asked().len(), n_asked, "nothing is asked for what is here");

    let text =
        place.run(&[], &["generate", "--model", "Guest", "-p", "Once upon a", "-n", "2", "--temp", "0"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    let verified = place.run(&[], &["model", "verify", "guest"]);
    assert!(verified.code == Some(0) && verified.stdout.starts_with("ok "), "{}", verified.stdout);

    // One bit is enough.
    let mut bytes = file();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(place.model(), bytes).unwrap();
    let wrong = place.run(&[], &["model", "verify", "guest"]);
    assert!(
        wrong.code == Some(1) && wrong.stdout.contains("WRONG") && wrong.stdout.contains("SHA-256"),
        "{}",
        wrong.stdout
    );
    refused(&place.pull(&[]), &["--force"]);
    came(&place.pull(&["--force"]), &place);
}

#[test]
fn dropped_connections_are_taken_up_where_they_broke() {
    let server = Server::start(file(), |asked| match asked.number % 3 {
        2 => Reply::CutAfter(100_000),
        _ => Reply::Honest,
    });
    let place = Place::of(&server);
    came(&place.pull(&["--connections", "2"]), &place);
    assert_eq!(server.bytes_sent(), file().len() + 1, "no byte comes twice");
}

#[test]
fn a_killed_pull_goes_on_where_it_was() {
    let server = Server::start(file(), |asked| {
        let slow = asked.number > 6;
        if slow { Reply::Slowly(10_000, Duration::from_millis(500)) } else { Reply::Honest }
    });
    let place = Place::of(&server);
    let mut child = place.pull_beside();
    until("some chunks", || server.bytes_sent() > 1_200_000);
    // Meanwhile nobody else may write the same file.
    refused(&place.pull(&[]), &["already being downloaded", &child.id().to_string()]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.left(), ["storyteller.gguf.part", "storyteller.gguf.part.journal"]);
    let told = place.run(&[], &["model", "list", "--json"]).json();
    assert!(
        told.as_array().unwrap().iter().all(|row| row["name"] != "guest"),
        "its manifest is not here yet"
    );

    let second = Server::start(file(), |_| Reply::Honest);
    let moved = Place::new(&second.url("/elsewhere.gguf"), |text| text);
    std::fs::rename(place.models(), moved.models()).unwrap();
    let ended = moved.pull(&[]);
    came(&ended, &moved);
    assert!(ended.stderr.contains("continuing after"), "{}", ended.stderr);
    assert!(second.bytes_sent() < file().len() - 500_000, "{} bytes came again", second.bytes_sent());
}

#[test]
fn a_server_without_ranges_is_read_in_one_piece() {
    let server = Server::start(file(), |asked| Reply::Whole((asked.number == 0).then_some(50_000)));
    let place = Place::of(&server);
    let ended = place.pull(&[]);
    came(&ended, &place);
    assert!(ended.stderr.contains("does not support ranges"), "{}", ended.stderr);
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn wrong_bytes_are_thrown_away() {
    let mut wrong = file();
    wrong[3_000_000] ^= 0x10;
    for reply in [|_: &Asked| Reply::Honest, |_: &Asked| Reply::Whole(None)] {
        let server = Server::start(wrong.clone(), reply);
        let place = Place::of(&server);
        refused(&place.pull(&[]), &["does not match the manifest", "SHA-256", "d525fe33", "127.0.0.1"]);
        assert_eq!(place.left(), Vec::<String>::new());
    }
}

#[test]
fn what_an_earlier_pull_left_of_another_file_does_not_spoil_this_one() {
    let mut other = file();
    other[10] ^= 1;
    let cut = Server::start(other, |asked| match asked.number {
        0..5 => Reply::Honest,
        _ => Reply::Status(500, String::new()),
    });
    let place = Place::of(&cut);
    refused(
        &place.pull(&["--connections", "1"]),
        &["has a server error (500)", "gave up after 3 tries", "kept"],
    );
    assert_eq!(place.left().len(), 2);
    let honest = Server::start(file(), |_| Reply::Honest);
    let moved = Place::of(&honest);
    std::fs::rename(place.models(), moved.models()).unwrap();
    let ended = moved.pull(&[]);
    came(&ended, &moved);
    assert!(ended.stderr.contains("downloading from the beginning"), "{}", ended.stderr);
}

#[test]
fn lies_about_lengths_are_found_out() {
    let place_with = |reply: fn(&Asked) -> Reply| {
        let server = Server::start(file(), reply);
        (Place::of(&server), server)
    };
    let (place, _server) = place_with(|_| Reply::OfTotal(4_000_000));
    refused(&place.pull(&[]), &["4000000 bytes", "3766048", "a different file"]);
    let (place, _server) = place_with(|_| Reply::OtherRange);
    refused(&place.pull(&[]), &["requested bytes 0-0", "bytes 1-1/"]);
    let (place, _server) = place_with(|asked| match asked.number {
        0 => Reply::Honest,
        _ => Reply::CutAfter(0),
    });
    refused(&place.pull(&[]), &["gave up after 3 tries", "run the same command to continue"]);
    // Without a digest and a size, the server is believed, until the disk is too small.
    let server = Server::start(file(), |_| Reply::OfTotal(100_000_000_000_000));
    let place = Place::new(&server.url("/x"), without_digest);
    refused(&place.pull(&["--accept-unverified"]), &["free", "100000.00 GB", "--dir"]);
}

fn without_digest(text: String) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("sha256") && !line.starts_with("bytes"));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn refusals_say_what_to_do() {
    let answer = |code: u16| Server::start(file(), move |_| Reply::Status(code, String::new()));
    for (code, token, words) in [
        (401, "", vec!["(401)", "HF_TOKEN", "terms"]),
        (403, "hf_secret", vec!["rejects the token", "(403)"]),
        (404, "", vec!["no such file (404)", "/org/model.gguf", "not a complete mirror"]),
        (500, "", vec!["has a server error (500)", "gave up after 3 tries"]),
        (418, "", vec!["418"]),
    ] {
        let server = answer(code);
        let ended = Place::of(&server).pull_as(&[("HF_TOKEN", token)], &[]);
        refused(&ended, &words);
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
        let tries = if code == 500 { 3 } else { 1 };
        assert_eq!(server.asked().len(), tries, "{code}");
    }
    let nobody = Place::new("http://127.0.0.1:9/x", |text| text);
    refused(&nobody.pull(&[]), &["127.0.0.1", "gave up after 3 tries"]);
}

#[test]
fn a_busy_server_is_waited_for_and_asked_less() {
    let server = Server::start(file(), |asked| match asked.number {
        0 => Reply::Status(503, "Retry-After: 1\r\n".to_owned()),
        3..6 => Reply::Status(429, "Retry-After: 1\r\n".to_owned()),
        _ => Reply::Honest,
    });
    let place = Place::of(&server);
    let begun = Instant::now();
    came(&place.pull(&[]), &place);
    assert!(begun.elapsed() >= Duration::from_secs(1), "the server's own time is kept");
}

#[test]
fn a_redirect_is_followed_and_takes_the_token_to_no_other_host() {
    let target = Server::start(file(), |_| Reply::Honest);
    // The same machine under another name is another host.
    let there = format!("http://localhost:{}/signed?key=1", target.port());
    let server = Server::start(Vec::new(), move |_| Reply::Status(302, format!("Location: {there}\r\n")));
    let place = Place::of(&server);
    came(&place.pull_as(&[("HF_TOKEN", "hf_secret")], &[]), &place);
    assert!(server.asked().iter().all(|asked| asked.token.as_deref() == Some("Bearer hf_secret")));
    assert!(target.asked().iter().all(|asked| asked.token.is_none() && asked.path == "/signed?key=1"));

    let circle = Server::start(Vec::new(), |_| Reply::Status(302, "Location: /again\r\n".to_owned()));
    refused(&Place::of(&circle).pull(&[]), &["redirects in a loop"]);
}

#[test]
fn a_mirror_is_asked_for_the_same_path() {
    let mirror = Server::start(file(), |_| Reply::Honest);
    let place = Place::new("https://huggingface.co/org/model/resolve/main/a.gguf", |text| text);
    let endpoint = mirror.url("/hf/");
    came(&place.pull_as(&[("HF_ENDPOINT", &endpoint)], &[]), &place);
    assert!(mirror.asked().iter().all(|asked| asked.path == "/hf/org/model/resolve/main/a.gguf"));
    refused(&place.pull(&["--force", "--endpoint", "mirror"]), &["--endpoint", "https://"]);
}

#[test]
fn without_a_digest_nothing_is_pulled_unless_told_so() {
    let server = Server::start(file(), |_| Reply::Tagged("one"));
    let place = Place::new(&server.url("/x"), without_digest);
    refused(&place.pull(&[]), &["has no digest", "--accept-unverified"]);
    assert!(server.asked().is_empty());
    let ended = place.pull(&["--accept-unverified"]);
    came(&ended, &place);
    assert!(ended.stderr.contains("UNVERIFIED") && ended.stderr.contains("d525fe33"), "{}", ended.stderr);
    let verified = place.run(&[], &["model", "verify"]).stdout;
    assert!(verified.contains("guest: shape matches the manifest, which has no digest"), "{verified}");

    // What comes has to be a model, and the one that the manifest describes.
    let page = Server::start(vec![b'<'; 300_000], |_| Reply::Honest);
    let place = Place::new(&page.url("/x"), without_digest);
    refused(&place.pull(&["--accept-unverified"]), &["not a model file", "deleted"]);
    let other =
        Place::new(&server.url("/x"), |text| without_digest(text).replace("n_layers = 6", "n_layers = 7"));
    refused(&other.pull(&["--accept-unverified"]), &["does not match its manifest", "n_layers", "deleted"]);
    assert_eq!((place.left(), other.left()), (Vec::new(), Vec::new()));

    // And the same from the first byte to the last.
    let changing = Server::start(file(), |asked| match asked.number {
        0..3 => Reply::Tagged("one"),
        _ => Reply::Whole(None),
    });
    let place = Place::new(&changing.url("/x"), without_digest);
    refused(&place.pull(&["--accept-unverified"]), &["changed during the download"]);
}

#[test]
fn names_that_lead_nowhere_say_where_to_look() {
    let place = Place::new("http://127.0.0.1:9/x", |text| text);
    refused(&place.run(&[], &["model", "pull", "gpt-5"]), &["no model is named", "bitnet-b1.58-2B-4T"]);
    refused(
        &place.run(&[], &["model", "verify", "bitnet-b1.58-2b-4t"]),
        &[
            "is not downloaded",
            "model \
                                                                                                 pull",
        ],
    );
    for command in ["generate", "bench"] {
        let mut line = vec![command, "--model", "bitnet-b1.58-2b-4t"];
        line.extend((command == "generate").then_some(["-p", "x"]).into_iter().flatten());
        refused(&place.run(&[], &line), &["is not downloaded", "ternfleet model pull bitnet-b1.58-2B-4T"]);
    }
    refused(&place.run(&[], &["up", "--model", "bitnet_b1_58-3B"]), &["cannot be run", "8640"]);
    refused(&place.run(&[], &["worker", "--model", "bitnet-b1.58-2B-4T"]), &["is not downloaded"]);
    let shipped = place.run(&[], &["model", "pull", "storyteller"]);
    assert!(shipped.stdout.trim().ends_with("storyteller.gguf"), "{}", shipped.stderr);
    assert!(Path::new(shipped.stdout.trim()).is_file());
}

/// The storyteller's vocabulary as a `tokenizer.json` has it, with `split` in place of its own.
fn tokenizer_json(split: &str) -> String {
    let file = gguf::File::open(storyteller()).unwrap();
    let vocabulary = gguf::vocabulary(&file).unwrap();
    let tokens = || vocabulary.tokens.iter().zip(&vocabulary.token_types).enumerate();
    let of_type = |wanted: TokenType| tokens().filter(move |(_, (_, kind))| **kind == wanted);
    let added = of_type(TokenType::Control).map(|(id, (text, _))| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    let words: serde_json::Map<String, Value> =
        of_type(TokenType::Normal).map(|(id, (text, _))| (text.clone(), json!(id))).collect();
    let split =
        json!({"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<Value>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
        "model": {"type": "BPE", "ignore_merges": true, "vocab": words, "merges": vocabulary.merges},
    })
    .to_string()
}

#[test]
fn a_tokenizer_json_is_compared_with_what_the_engine_makes_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json").display().to_string();
    let model = storyteller();
    let verify = || run_with(&[], &["model", "verify", &model, "--tokenizer", &path]);
    let manifest = Manifest::parse(MANIFEST, "the manifest").unwrap();
    let split = &manifest.tokenizer.unwrap().splits[0];

    std::fs::write(&path, tokenizer_json(split)).unwrap();
    let right = verify();
    assert!(right.code == Some(0) && right.stdout.starts_with("ok "), "{}{}", right.stdout, right.stderr);
    assert!(right.stderr.contains("23 texts give the same token ids as"), "{}", right.stderr);

    // Spaces by themselves and not with the words.
    let other = split.replace(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+");
    assert_ne!(other, *split);
    std::fs::write(&path, tokenizer_json(&other)).unwrap();
    let wrong = verify();
    assert_eq!(wrong.code, Some(1), "{}", wrong.stderr);
    for part in ["WRONG", "The quick brown fox", "becomes [", "tokenizer.json"] {
        assert!(wrong.stdout.contains(part), "{part:?} is not in: {}", wrong.stdout);
    }

    std::fs::write(&path, "{}").unwrap();
    refused(&verify(), &["tokenizer.json"]);
    std::fs::remove_file(&path).unwrap();
    refused(&verify(), &["tokenizer.json"]);
}
