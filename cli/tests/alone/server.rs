//! An HTTP server of one file, on loopback, that misbehaves as it is told: each answer is chosen by a closure.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Which request it is, from 0.
    pub(crate) number: usize,
    pub(crate) path: String,
    pub(crate) range: Option<Range<usize>>,
    pub(crate) token: Option<String>,
}

/// How it is answered.
pub(crate) enum Reply {
    /// As HTTP has it: the range that was asked for.
    Honest,
    /// The same with this entity tag.
    Tagged(&'static str),
    /// Honest headers, and the connection ends after so many bytes.
    CutAfter(usize),
    /// So many bytes, a pause, the next, and so on.
    Slowly(usize, Duration),
    /// All of it, whatever range was asked for; cut after so many bytes, if any.
    Whole(Option<usize>),
    /// The right range, said to be of a file of this size.
    OfTotal(u64),
    /// A range that nobody asked for.
    OtherRange,
    /// A status with header lines, and no file.
    Status(u16, String),
}

#[derive(Default)]
struct Log {
    asked: Mutex<Vec<Asked>>,
    bytes_sent: AtomicUsize,
}

pub(crate) struct Server {
    port: u16,
    log: Arc<Log>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(file: Vec<u8>, choose: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (log, stop) = (Arc::new(Log::default()), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::new(file), log.clone(), Arc::new(choose), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (file, log, choose, stop) = shared.clone();
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is part of the game.
                std::thread::spawn(
                    move || while serve(stream.as_ref().ok(), &file, &log, &*choose).is_some() {},
                );
            }
        });
        Server { port, log, stop }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.asked.lock().unwrap().clone()
    }

    /// Bytes of the file that were sent, over all answers.
    pub(crate) fn bytes_sent(&self) -> usize {
        self.log.bytes_sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One request and its answer; `None` when the connection is of no more use.
fn serve(
    stream: Option<&TcpStream>,
    file: &[u8],
    log: &Log,
    choose: &(dyn Fn(&Asked) -> Reply + Send + Sync),
) -> Option<()> {
    let stream = stream?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let (mut range, mut token) = (None, None);
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_lowercase().as_str() {
            "range" => {
                let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                let end = last.parse().unwrap_or(usize::MAX).saturating_add(1).min(file.len());
                range = Some(first.parse().ok()?..end);
            }
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    let asked = {
        let mut all = log.asked.lock().unwrap();
        let asked = Asked { number: all.len(), path, range, token };
        all.push(asked.clone());
        asked
    };
    let range = asked.range.clone().unwrap_or(0..file.len());
    let part = |total: u64, tag: &str, range: &Range<usize>| {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{total}\r\nContent-Length: {}\r\n{tag}\r\n",
            range.start,
            range.end - 1,
            range.len()
        )
    };
    let send = |head: String, body: &[u8], step: usize, pause: Duration| {
        let mut stream = stream;
        stream.write_all(head.as_bytes()).ok()?;
        for piece in body.chunks(step.max(1)) {
            stream.write_all(piece).ok()?;
            log.bytes_sent.fetch_add(piece.len(), Ordering::SeqCst);
            std::thread::sleep(pause);
        }
        Some(())
    };
    let at_once = (usize::MAX, Duration::ZERO);
    let total = file.len() as u64;
    let end_after = |sent: Option<()>| {
        sent?;
        let _ = stream.shutdown(std::net::Shutdown::Both);
        None
    };
    match choose(&asked) {
        Reply::Honest => send(part(total, "", &range), &file[range], at_once.0, at_once.1),
        Reply::Tagged(tag) => {
            send(part(total, &format!("ETag: \"{tag}\"\r\n"), &range), &file[range], at_once.0, at_once.1)
        }
        Reply::CutAfter(n) => {
            let head = part(total, "", &range);
            end_after(send(head, &file[range.start..range.end.min(range.start + n)], at_once.0, at_once.1))
        }
        Reply::Slowly(step, pause) => send(part(total, "", &range), &file[range], step, pause),
        Reply::Whole(cut) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.len());
            let sent = send(head, &file[..cut.unwrap_or(file.len())], at_once.0, at_once.1);
            if cut.is_some() { end_after(sent) } else { sent }
        }
        Reply::OfTotal(total) => send(part(total, "", &range), &file[range], at_once.0, at_once.1),
        Reply::OtherRange => {
            let other = range.start + 1..range.end + 1;
            send(part(total + 1, "", &other), &file[range], at_once.0, at_once.1)
        }
        Reply::Status(code, headers) => {
            send(format!("HTTP/1.1 {code} So\r\n{headers}Content-Length: 0\r\n\r\n"), &[], 1, Duration::ZERO)
        }
    }
}
