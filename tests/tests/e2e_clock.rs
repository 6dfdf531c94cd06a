//! A real fleet under a wall clock that is stepped, by libfaketime (Debian package `faketime`). It is not among the
//! usual tests, since it needs that package: `scripts/system-tests.sh` asks for it.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::path::PathBuf;
use std::time::Duration;

use ternfleet_tests::http;
use ternfleet_tests::program::{LocalFleet, up_command, wait_for};

/// Where Debian keeps the library.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let found =
        folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.is_file());
    found.expect("libfaketime: install the Debian package faketime")
}

fn metric(page: &str, name: &str) -> f64 {
    let value = page.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    value.filter_map(|value| value.parse::<f64>().ok()).sum()
}

#[test]
#[ignore = "needs the Debian package faketime"]
fn a_fleet_whose_wall_clock_is_stepped_loses_no_worker_and_blames_no_job() {
    let folder = tempfile::tempdir().unwrap();
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "+0").unwrap();
    let mut up = up_command(folder.path(), &["--workers", "2", "--threads", "1"]).unwrap();
    up.env("LD_PRELOAD", library())
        .env("FAKETIME_TIMESTAMP_FILE", &offset)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let fleet = LocalFleet::start_by(&mut up, folder.path()).unwrap();
    let lines: String =
        (0..400).map(|n| format!("{{\"prompt\": \"Tale {n}.\", \"max_tokens\": 60}}\n")).collect();
    let input = fleet.write("in.jsonl", &lines).unwrap();
    let detached = ["submit", &input, "--deadline", "2h", "--anyway", "--detach"];
    let id = fleet.run(&detached).unwrap().stdout.trim().to_owned();
    fleet.wait_for_answers(&id, 5).unwrap();
    // A minute forward twice, three minutes back, far beyond the batch's deadline, and back to the true time.
    for by in ["+60", "+120", "-60", "+14400", "+0"] {
        std::fs::write(&offset, by).unwrap();
        std::thread::sleep(Duration::from_secs(3));
    }
    let ended = wait_for(Duration::from_secs(300), || {
        let status = fleet.run(&["status", &id, "--json"])?.json()?;
        Ok((status["status"] == "completed").then_some(status))
    });
    let (_, page) = http::get_blocking(&fleet.addresses.http, "/metrics");
    let status = ended.unwrap_or_else(|error| panic!("{error:#}\n{page}"));
    assert_eq!(status["request_counts"]["completed"], 400, "{status}");
    assert!(metric(&page, "ternfleet_clock_steps_total") >= 4.0, "{page}");
    for never in
        ["ternfleet_workers_lost_total", "ternfleet_attempts_failed_total", "ternfleet_jobs_dead_total"]
    {
        assert!(page.contains(never), "{page}");
        assert_eq!(metric(&page, never), 0.0, "{never}");
    }
}
