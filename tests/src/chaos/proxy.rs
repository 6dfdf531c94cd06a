//! A small TCP proxy between a process and a nats-server, so that the line can be cut without touching either.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What the line does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Open,
    /// Connections break, and new ones are closed at once.
    Cut,
    /// Nothing breaks and nothing passes: as when a cable is pulled.
    Silent,
}

#[derive(Debug, Default)]
struct Shared {
    line: AtomicU8,
    streams: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn is(&self, line: Line) -> bool {
        self.line.load(Ordering::Relaxed) == line as u8
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens on a port of its own for as long as the process lives.
#[derive(Debug)]
pub(super) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(super) fn to(target: u16) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is(Line::Open)
                    && let Ok(server) = TcpStream::connect(("127.0.0.1", target))
                {
                    // A broken pair is as good as a cut line.
                    let _ = join(&accepting, client, server);
                }
            }
        });
        Ok(Proxy { port, shared })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set(&self, line: Line) {
        self.shared.line.store(line as u8, Ordering::Relaxed);
        if line == Line::Cut {
            for stream in self.shared.streams().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn join(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    shared.streams().extend([client.try_clone()?, server.try_clone()?]);
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let shared = Arc::clone(shared);
        thread::spawn(move || pump(&shared, from, to));
    }
    Ok(())
}

fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0u8; 16 << 10];
    while let Ok(count) = from.read(&mut bytes) {
        while shared.is(Line::Silent) {
            thread::sleep(Duration::from_millis(10));
        }
        if count == 0 || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
