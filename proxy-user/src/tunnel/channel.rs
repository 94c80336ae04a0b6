//! One SSH channel as a byte stream, for the streams that share it: whatever is written between two
//! flushes goes in packets that are as large as can be, without further copies.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use russh::{Channel, ChannelId, ChannelMsg, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::counters::Refusal;
use super::memory::Budget;
use super::queue::{self, Queue};
use super::socket::Traffic;

/// Bytes of a full packet: a full frame.
pub const PACKET: usize = 65_160 - 64;

/// More than this cannot wait for its reader, unless that is no more: flow control of the streams keeps
/// it below.
const LIMIT: usize = 1 << 30;

type Reading = Pin<Box<dyn Future<Output = (Queue, Option<Result<Bytes, Refusal>>)> + Send>>;
type Sending = Pin<Box<dyn Future<Output = Result<(), russh::Error>> + Send>>;

/// Messages of a session.
pub trait Message: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static {}

impl<M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static> Message for M {}

/// The stream.
pub struct ChannelIo<M: Message> {
    reading: Option<Reading>,
    received: Bytes,
    writer: Arc<ChannelWriteHalf<M>>,
    traffic: Arc<Traffic>,
    buffer: BytesMut,
    sending: Option<Sending>,
}

fn read(mut queue: Queue) -> Reading {
    Box::pin(async move {
        let part = queue.next().await;
        if let Some(Ok(bytes)) = &part {
            queue.taken(bytes.len());
        }
        (queue, part)
    })
}

impl<M: Message> ChannelIo<M> {
    /// All of a channel of a session with this traffic. The second part is to be run as a task: it
    /// takes what comes off the session, also while nobody reads here, since the library would stop the
    /// whole session otherwise.
    pub fn new(
        channel: Channel<M>,
        traffic: Arc<Traffic>,
    ) -> (Self, impl Future<Output = ()> + Send + use<M>) {
        let (reader, writer) = channel.split();
        let (queue, fill) = queue::of(reader, &Budget::new(LIMIT), LIMIT);
        let io = Self {
            reading: Some(read(queue)),
            received: Bytes::new(),
            writer: Arc::new(writer),
            traffic,
            buffer: BytesMut::new(),
            sending: None,
        };
        (io, fill)
    }

    /// Hands everything that was written to the session.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(sending) = &mut self.sending {
                let sent = ready!(sending.as_mut().poll(cx));
                self.sending = None;
                sent.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
            }
            if self.buffer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let bytes = self.buffer.split().freeze();
            let (writer, traffic) = (Arc::clone(&self.writer), Arc::clone(&self.traffic));
            self.sending = Some(Box::pin(async move {
                traffic.room().await;
                writer.data_bytes(bytes).await
            }));
        }
    }
}

impl<M: Message> AsyncRead for ChannelIo<M> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            // None: it has ended.
            let Some(reading) = &mut self.reading else {
                return Poll::Ready(Ok(()));
            };
            let (queue, part) = ready!(reading.as_mut().poll(cx));
            self.reading = match part {
                None => None,
                Some(Ok(bytes)) => {
                    self.received = bytes;
                    Some(read(queue))
                }
                Some(Err(why)) => {
                    self.reading = None;
                    return Poll::Ready(Err(io::Error::other(why.word())));
                }
            };
        }
        let bytes = self.received.len().min(buffer.remaining());
        let part = self.received.split_to(bytes);
        buffer.put_slice(&part);
        Poll::Ready(Ok(()))
    }
}

impl<M: Message> AsyncWrite for ChannelIo<M> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= PACKET {
            ready!(self.poll_drain(cx))?;
        }
        let mut written = 0;
        if self.buffer.is_empty() {
            // The same memory as the last time, once that has been sent.
            self.buffer.reserve(PACKET);
        }
        for slice in slices {
            let room = PACKET - self.buffer.len();
            let part = (&**slice).take(room);
            written += part.remaining();
            bytes::BufMut::put(&mut self.buffer, part);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        let writer = Arc::clone(&self.writer);
        let mut eof = Box::pin(async move { writer.eof().await });
        // The session's queue has room or is gone: asked once, and not again if it is full.
        let _ = eof.as_mut().poll(cx);
        Poll::Ready(Ok(()))
    }
}
