//! Connections of the HTTP port: how many there may be, of one address too, and how long a peer may keep one waiting.
//!
//! axum's own server takes whoever comes for as long as they like. What a request may bring is the gateway's business.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::counted::{Counted, Counts};

/// From the connection, or the request before, to the last byte of a request's headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
const HEADER_BYTES_MAX: usize = 64 << 10;
/// A reader who takes nothing for so long is gone.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// Requests that are under way at shutdown may take so long to end.
const DRAIN: Duration = Duration::from_secs(5);
/// Peers that are being sent [`TURNED_AWAY`], and how long that may take.
const TELLING_MAX: usize = 64;
const TELL_WITHIN: Duration = Duration::from_millis(500);
const TURNED_AWAY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Where connections come from.
pub(crate) trait Listener: Send {
    type Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one, and whose it is.
    fn accept(&mut self) -> impl Future<Output = std::io::Result<(Self::Socket, IpAddr)>> + Send;
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    async fn accept(&mut self) -> std::io::Result<(TcpStream, IpAddr)> {
        let (socket, peer) = TcpListener::accept(self).await?;
        let _ = socket.set_nodelay(true);
        Ok((socket, peer.ip()))
    }
}

/// In memory, from this machine.
impl Listener for mpsc::UnboundedReceiver<DuplexStream> {
    type Socket = DuplexStream;

    async fn accept(&mut self) -> std::io::Result<(DuplexStream, IpAddr)> {
        match self.recv().await {
            Some(socket) => Ok((socket, IpAddr::V4(Ipv4Addr::LOCALHOST))),
            None => std::future::pending().await,
        }
    }
}

/// Serves until shutdown. No address has more than half of the connections.
pub(crate) async fn serve(
    mut listener: impl Listener,
    router: Router,
    max: usize,
    shutdown: CancellationToken,
) {
    let by_address = Counts::<IpAddr>::default();
    let (mut connections, mut turned_away) = (JoinSet::new(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            Some(_) = turned_away.join_next(), if !turned_away.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, mostly: others end meanwhile.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match by_address.take_within(peer, max.div_ceil(2), max) {
            Some(counted) => {
                connections.spawn(one(socket, router.clone(), shutdown.clone(), counted));
            }
            // So many are told why; the others are just closed.
            None if turned_away.len() < TELLING_MAX => {
                turned_away.spawn(tokio::time::timeout(TELL_WITHIN, turn_away(socket)));
            }
            None => {}
        }
    }
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

/// Tells the peer why, and reads what it has sent: a socket that is closed over unread bytes takes the answer with it.
async fn turn_away(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    socket.write_all(TURNED_AWAY).await?;
    socket.shutdown().await?;
    let mut unread = [0u8; 4096];
    while socket.read(&mut unread).await? > 0 {}
    Ok(())
}

async fn one<S>(socket: S, router: Router, shutdown: CancellationToken, _counted: Counted<IpAddr>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(Unstalled::new(socket));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection was interrupted");
    }
}

/// A socket whose writes fail once the peer has taken nothing for [`STALLED_AFTER`].
struct Unstalled<S> {
    socket: S,
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Unstalled<S> {
    fn new(socket: S) -> Self {
        Self { socket, deadline: Box::pin(tokio::time::sleep(STALLED_AFTER)), waiting: false }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<std::io::Result<T>>,
    ) -> Poll<std::io::Result<T>> {
        if outcome.is_ready() {
            self.waiting = false;
            return outcome;
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.deadline.as_mut().reset(Instant::now() + STALLED_AFTER);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.watch(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let outcome = Pin::new(&mut self.socket).poll_write_vectored(cx, parts);
        self.watch(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let outcome = Pin::new(&mut self.socket).poll_flush(cx);
        self.watch(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(max: usize) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/", axum::routing::get(async || "here"));
        tokio::spawn(serve(listener, router, max, stop.clone()));
        (address, stop)
    }

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        // Whoever is turned away may find the connection reset after the answer.
        let _ = socket.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn an_address_has_half_of_the_connections_and_the_rest_are_turned_away() {
        let (address, stop) = start(4).await;
        let idle = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let refused = ask(address).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        drop(idle);
        let began = std::time::Instant::now();
        while !ask(address).await.starts_with("HTTP/1.1 200") {
            assert!(began.elapsed() < Duration::from_secs(10), "no connection was given back");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn headers_without_end_are_refused() {
        let (address, stop) = start(4).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut sent = 0;
        socket.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        while socket.write_all(&[b'a'; 4096]).await.is_ok() {
            sent += 4096;
            assert!(sent < 64 << 20, "{sent} bytes of headers were taken");
            tokio::task::yield_now().await;
        }
        stop.cancel();
    }
}
