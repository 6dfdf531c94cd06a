//! A small S3 server that misbehaves in one way at a time, and objects that arrive whole nevertheless.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// What the server does to a request, by the number of the request for an object's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// Every second answer stops in its middle.
    Dropped,
    /// Every second answer says 503.
    Busy,
    /// Every second answer has fewer bytes than were asked for, and says so.
    Short,
    /// Every answer comes in pieces with pauses.
    Slow,
    Forbidden,
    /// The object is another one after the first part.
    Changed,
}

struct Server {
    port: u16,
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Server {
    fn start(trouble: Trouble) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let objects = Arc::new(Mutex::new(BTreeMap::new()));
        let served = objects.clone();
        let asked = Arc::new(Mutex::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (served, asked) = (served.clone(), asked.clone());
                std::thread::spawn(move || while answer(&stream, trouble, &served, &asked).is_some() {});
            }
        });
        Server { port, objects }
    }

    fn remote(&self) -> Remote {
        let store = aws::AmazonS3Builder::new()
            .with_bucket_name("bucket")
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_region("us-east-1")
            .with_access_key_id("id")
            .with_secret_access_key("very-secret")
            .with_retry(retry())
            .with_http_connector(Wire)
            .build()
            .unwrap();
        let place = "s3://bucket/a/table.csv".to_owned();
        Remote::of(Box::new(store), Key::from("a/table.csv"), place, "AWS_ACCESS_KEY_ID").unwrap()
    }
}

/// Answers one request; `None` when the connection is over.
fn answer(
    stream: &TcpStream,
    trouble: Trouble,
    objects: &Mutex<BTreeMap<String, Vec<u8>>>,
    asked: &Mutex<u32>,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let (method, target) = head[0].split_once(' ').map(|(method, rest)| (method, rest.split(' ').next()))?;
    let (path, query) = target?.split_once('?').unwrap_or((target?, ""));
    let mut out = stream;
    let mut reply = |status: &str, more: &str, body: &[u8], length: usize| {
        let head = format!("HTTP/1.1 {status}\r\nETag: \"1\"\r\nContent-Length: {length}\r\n{more}\r\n");
        out.write_all(head.as_bytes()).and_then(|()| out.write_all(body)).ok()
    };
    if trouble == Trouble::Forbidden {
        let said = b"<Error><Code>AccessDenied</Code><StringToSign>id very-secret</StringToSign></Error>";
        return reply("403 Forbidden", "", if method == "HEAD" { b"" } else { said }, said.len());
    }
    let number = {
        let mut asked = asked.lock().unwrap();
        *asked += u32::from(method != "HEAD");
        *asked
    };
    let is_bad = number % 2 == 1 && method != "HEAD";
    if trouble == Trouble::Busy && is_bad {
        return reply("503 Slow Down", "", b"", 0);
    }
    let mut objects = objects.lock().unwrap();
    match method {
        "HEAD" | "GET" => {
            let Some(object) = objects.get(path).cloned() else { return reply("404 Not Found", "", b"", 0) };
            drop(objects);
            let date = "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n";
            if method == "HEAD" {
                return reply("200 OK", date, b"", object.len());
            }
            if trouble == Trouble::Changed && number > 1 {
                return reply("412 Precondition Failed", "", b"", 0);
            }
            let range = header("range")?;
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let (first, mut last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            if trouble == Trouble::Short && is_bad {
                last -= 1;
            }
            let part = &object[first..=last];
            let more = format!("{date}Content-Range: bytes {first}-{last}/{}\r\n", object.len());
            match trouble {
                Trouble::Dropped if is_bad => {
                    reply("206 Partial Content", &more, &part[..part.len() / 2], part.len());
                    None
                }
                Trouble::Slow => {
                    reply("206 Partial Content", &more, &part[..1], part.len())?;
                    std::thread::sleep(Duration::from_millis(50));
                    out.write_all(&part[1..]).ok()
                }
                _ => reply("206 Partial Content", &more, part, part.len()),
            }
        }
        "POST" if query.starts_with("uploads") => {
            let said =
                b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
            reply("200 OK", "", said, said.len())
        }
        "POST" => {
            let parts: Vec<u8> = objects
                .iter()
                .filter(|(name, _)| name.starts_with("part "))
                .flat_map(|(_, part)| part.clone())
                .collect();
            objects.insert(path.to_owned(), parts);
            let said = b"<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>";
            reply("200 OK", "", said, said.len())
        }
        "PUT" => {
            let part = query.split('&').find_map(|pair| pair.strip_prefix("partNumber="));
            let name = part.map_or(path.to_owned(), |part| format!("part {part}"));
            objects.insert(name, body);
            reply("200 OK", "", b"", 0)
        }
        _ => reply("405 Method Not Allowed", "", b"", 0),
    }
}

/// Larger than two parts.
fn content() -> Vec<u8> {
    (0..(2 * PART_BYTES + 12_345)).map(|at| (at % 251) as u8).collect()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn an_object_arrives_whole_whatever_the_server_does() {
    for trouble in [Trouble::Nothing, Trouble::Dropped, Trouble::Busy, Trouble::Short, Trouble::Slow] {
        let server = Server::start(trouble);
        server.objects.lock().unwrap().insert("/bucket/a/table.csv".to_owned(), content());
        let file = run(server.remote().fetch()).unwrap_or_else(|fault| panic!("{trouble:?}: {fault:#}"));
        assert!(std::fs::read(&file).unwrap() == content(), "{trouble:?}");
    }
}

#[test]
fn results_appear_when_all_of_them_have_arrived() {
    for (trouble, size) in [(Trouble::Busy, 100), (Trouble::Busy, content().len())] {
        let server = Server::start(trouble);
        let file = NamedTempFile::new().unwrap();
        std::fs::write(&file, &content()[..size]).unwrap();
        run(server.remote().put(file.path().to_owned())).unwrap();
        assert!(server.objects.lock().unwrap()["/bucket/a/table.csv"] == content()[..size]);
        // It is there now, and is overwritten only where that is asked for.
        let refused = run(server.remote().draft(Existing::Refused)).unwrap_err().to_string();
        assert!(refused.contains("--force"), "{refused}");
        run(server.remote().draft(Existing::Replaced)).unwrap();
    }
}

#[test]
fn a_refusal_says_what_to_do_and_no_secret() {
    let server = Server::start(Trouble::Forbidden);
    let refused = format!("{:#}", run(server.remote().fetch()).unwrap_err());
    assert!(refused.contains("AWS_ACCESS_KEY_ID") && !refused.contains("very-secret"), "{refused}");
    assert!(!format!("{:?}", server.remote()).contains("very-secret"));
    let server = Server::start(Trouble::Nothing);
    let missing = run(server.remote().fetch()).unwrap_err().to_string();
    assert_eq!(missing, "s3://bucket/a/table.csv does not exist");
    let server = Server::start(Trouble::Changed);
    server.objects.lock().unwrap().insert("/bucket/a/table.csv".to_owned(), content());
    let changed = run(server.remote().fetch()).unwrap_err().to_string();
    assert!(changed.contains("changed while it was read"), "{changed}");
}
