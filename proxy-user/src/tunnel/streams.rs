//! Many connections in one SSH channel: HTTP/2 (RFC 9113) `CONNECT` streams, each with its own flow
//! control, opened by the node. `:authority` names the port at which the node listens, `forwarded`
//! (RFC 7239) who connects. No connection-wide window is ever the limit, so that a stream whose
//! consumer has stopped holds what it holds, and nothing else.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use hyper::http::{Method, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};

use super::socket::Traffic;
use super::window::{LEAST, Window};

/// Flow control of all streams together: as much as the protocol can say.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// With its header of 9 bytes a frame fills one SSH packet; that, and what is in it, the kernel carries as
/// one: 45 segments of 1,448 bytes are the most (`GSO_MAX_SIZE`, 64 KiB). One byte more would be a
/// packet of its own, both on its way and at the end.
const FRAME: u32 = 65_160 - 64 - 9;

/// Bytes of a stream that wait to be sent in this process.
const SEND_BUFFER: usize = 512 * 1024;

/// Streams at once.
const STREAMS: u32 = 65_536;

/// Streams that have not answered for so long, while next to nothing went over the session, have
/// stopped; the session may be alive all the same.
const STOPPED: Duration = Duration::from_secs(5);

/// Next to nothing, bytes.
const NOTHING: u64 = 64 * 1024;

/// So often the way is measured while something goes over it.
const MEASURE: Duration = Duration::from_millis(50);

/// A session is replaced before it runs out of numbers for streams (2^30).
pub const LAST_STREAM: u32 = 1 << 29;

/// Why streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer does not speak HTTP/2, or the channel broke.
    #[error("the streams of a session have ended: {0}")]
    Protocol(#[from] h2::Error),
    /// The peer's streams do not answer any more.
    #[error("the streams of a session have stopped")]
    Stopped,
    /// A request that cannot be.
    #[error("a stream cannot be asked for: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Measures the way and says how large windows are to be.
struct Tuner {
    ping: Option<PingPong>,
    traffic: Arc<Traffic>,
    window: Window,
    /// When, and what had gone over the session then.
    asked: Option<(Instant, u64)>,
    received: u64,
    pause: Duration,
    timer: std::pin::Pin<Box<Sleep>>,
    round_trip_us: Arc<AtomicU32>,
}

impl Tuner {
    fn new(
        ping: Option<PingPong>,
        traffic: Arc<Traffic>,
        most: u32,
        shown: Arc<AtomicU32>,
    ) -> Self {
        Self {
            ping,
            traffic,
            window: Window::new(most, Instant::now()),
            asked: None,
            received: 0,
            pause: MEASURE,
            timer: Box::pin(sleep(MEASURE)),
            round_trip_us: shown,
        }
    }

    /// A new window, if it is time for one, or that the peer's streams have stopped. Never ready
    /// otherwise.
    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<u32, StreamError>> {
        loop {
            let now = Instant::now();
            let Some(ping) = &mut self.ping else {
                return Poll::Pending;
            };
            if let Some((asked, before)) = self.asked {
                match ping.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = None;
                        let round_trip = now.saturating_duration_since(asked);
                        let shown = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
                        self.round_trip_us.store(shown, Ordering::Relaxed);
                        let received = self.traffic.received();
                        self.timer.as_mut().reset((now + self.pause).into());
                        if let Some(size) = self.window.learn(round_trip, received, now) {
                            return Poll::Ready(Ok(size));
                        }
                    }
                    Poll::Ready(Err(_)) => self.ping = None,
                    Poll::Pending => {
                        if self.timer.as_mut().poll(cx).is_pending() {
                            return Poll::Pending;
                        }
                        let gone = self.traffic.received() + self.traffic.sent();
                        if gone.saturating_sub(before) < NOTHING {
                            return Poll::Ready(Err(StreamError::Stopped));
                        }
                        self.asked = Some((asked, gone));
                        self.timer.as_mut().reset((now + STOPPED).into());
                    }
                }
                continue;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let received = self.traffic.received();
            // An idle way is asked now and then, for the figures alone.
            let pause = if received.saturating_sub(self.received) > u64::from(LEAST) {
                MEASURE
            } else {
                MEASURE * 20
            };
            self.received = received;
            if ping.send_ping(Ping::opaque()).is_ok() {
                self.asked = Some((now, received + self.traffic.sent()));
                self.timer.as_mut().reset((now + STOPPED).into());
                self.pause = pause;
            } else {
                self.timer.as_mut().reset((now + pause).into());
            }
        }
    }
}

/// How the streams of a session are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What went over the session.
    pub traffic: Arc<Traffic>,
    /// The largest window of a stream, bytes.
    pub window: u32,
    /// Where the last round trip is shown, microseconds.
    pub round_trip_us: Arc<AtomicU32>,
}

/// Opens streams: the node's end.
#[derive(Clone)]
pub struct Opener(SendRequest<Bytes>);

/// A stream that was asked for.
pub struct Opened {
    /// For what goes to the server.
    pub to: SendStream<Bytes>,
    /// The server's answer, with what comes from it.
    pub answer: ResponseFuture,
}

impl Opener {
    /// Asks for a stream to what stands behind `port`.
    pub async fn open(&self, port: u16, client: SocketAddr) -> Result<Opened, StreamError> {
        let mut ready = self.0.clone().ready().await?;
        let request = Request::builder()
            .method(Method::CONNECT)
            .version(Version::HTTP_2)
            .uri(format!("return-proxy:{port}"))
            .header("forwarded", format!("for=\"{}\"", quoted(client)))
            .body(())?;
        let (answer, to) = ready.send_request(request, false)?;
        Ok(Opened { to, answer })
    }
}

/// As RFC 7239 section 6 has it: `192.0.2.1:4711` or `[2001:db8::1]:4711`.
fn quoted(client: SocketAddr) -> String {
    super::socket::canonical(client).to_string()
}

/// Begins at the node's end. The second part has to be run for anything to happen; it ends with the
/// session.
pub async fn begin<I>(
    io: I,
    settings: Settings,
) -> Result<(Opener, impl Future<Output = Result<(), StreamError>> + Send), StreamError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (opener, mut connection) = h2::client::Builder::new()
        .initial_window_size(LEAST)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(1_024)
        .data_frame_budget(usize::MAX >> 1)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await?;
    let Settings {
        traffic,
        window,
        round_trip_us,
    } = settings;
    let mut tuner = Tuner::new(connection.ping_pong(), traffic, window, round_trip_us);
    let drive = poll_fn(move |cx| {
        while let Poll::Ready(size) = tuner.poll(cx) {
            // Fails while the last change is under way: then the next one comes.
            let _ = connection.set_initial_window_size(size?);
        }
        std::pin::Pin::new(&mut connection)
            .poll(cx)
            .map_err(StreamError::from)
    });
    Ok((Opener(opener), drive))
}

/// A stream that the node has opened.
pub struct Asked {
    /// The port at which the node took the connection.
    pub port: u16,
    /// Who connects, as the node says.
    pub client: Option<SocketAddr>,
    from: RecvStream,
    answer: SendResponse<Bytes>,
}

impl Asked {
    /// Accepts it.
    pub fn accept(mut self) -> Result<(SendStream<Bytes>, RecvStream), StreamError> {
        let response = Response::builder().status(StatusCode::OK).body(())?;
        let to = self.answer.send_response(response, false)?;
        Ok((to, self.from))
    }

    /// Refuses it.
    pub fn refuse(mut self, why: Reason) {
        self.answer.send_reset(why);
    }
}

/// Accepts streams: the server's end.
pub struct Acceptor<I> {
    connection: h2::server::Connection<I, Bytes>,
    tuner: Tuner,
    accepted: u32,
}

impl<I: AsyncRead + AsyncWrite + Send + Unpin> Acceptor<I> {
    /// Begins at the server's end.
    pub async fn begin(io: I, settings: Settings) -> Result<Self, StreamError> {
        let mut connection = h2::server::Builder::new()
            .initial_window_size(LEAST)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(STREAMS)
            .data_frame_budget(usize::MAX >> 1)
            .handshake::<_, Bytes>(io)
            .await?;
        let tuner = Tuner::new(
            connection.ping_pong(),
            settings.traffic,
            settings.window,
            settings.round_trip_us,
        );
        Ok(Self {
            connection,
            tuner,
            accepted: 0,
        })
    }

    /// The next stream; none: the session has ended. Nothing happens on any stream unless this is
    /// being waited for.
    pub async fn next(&mut self) -> Option<Result<Asked, StreamError>> {
        let Self {
            connection, tuner, ..
        } = self;
        let next = poll_fn(|cx| {
            while let Poll::Ready(size) = tuner.poll(cx) {
                match size {
                    // Fails while the last change is under way: then the next one comes.
                    Ok(size) => drop(connection.set_initial_window_size(size)),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            let accepted = connection.poll_accept(cx);
            accepted.map(|next| next.map(|stream| stream.map_err(StreamError::from)))
        });
        let (request, answer) = match next.await? {
            Ok(stream) => stream,
            Err(error) => return Some(Err(error)),
        };
        self.accepted = self.accepted.saturating_add(1);
        let port = request.uri().port_u16().unwrap_or_default();
        let client = request
            .headers()
            .get("forwarded")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.strip_prefix("for=\"")?.strip_suffix('"')?.parse().ok());
        Some(Ok(Asked {
            port,
            client,
            from: request.into_body(),
            answer,
        }))
    }

    /// Streams so far.
    pub const fn accepted(&self) -> u32 {
        self.accepted
    }
}

#[cfg(test)]
mod tests;
