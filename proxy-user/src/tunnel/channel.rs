//! One SSH channel as a byte stream, for the streams that share it: whatever is written between two
//! flushes goes in packets that are as large as can be, without further copies.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a full packet: the largest that the library has.
pub const PACKET: usize = 65_535;

type Reading = Pin<Box<dyn Future<Output = (ChannelReadHalf, Option<ChannelMsg>)> + Send>>;
type Sending = Pin<Box<dyn Future<Output = Result<(), russh::Error>> + Send>>;

/// Messages of a session.
pub trait Message: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static {}

impl<M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static> Message for M {}

/// The stream.
pub struct ChannelIo<M: Message> {
    reading: Option<Reading>,
    received: Bytes,
    writer: Arc<ChannelWriteHalf<M>>,
    buffer: BytesMut,
    sending: Option<Sending>,
}

fn read(mut half: ChannelReadHalf) -> Reading {
    Box::pin(async move {
        let message = half.wait().await;
        (half, message)
    })
}

impl<M: Message> ChannelIo<M> {
    /// All of a channel.
    #[must_use]
    pub fn new(channel: Channel<M>) -> Self {
        let (reader, writer) = channel.split();
        Self {
            reading: Some(read(reader)),
            received: Bytes::new(),
            writer: Arc::new(writer),
            buffer: BytesMut::new(),
            sending: None,
        }
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
            let writer = Arc::clone(&self.writer);
            self.sending = Some(Box::pin(async move { writer.data_bytes(bytes).await }));
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
            let (half, message) = ready!(reading.as_mut().poll(cx));
            self.reading = match message {
                None | Some(ChannelMsg::Eof | ChannelMsg::Close) => None,
                Some(ChannelMsg::Data { data }) => {
                    self.received = data;
                    Some(read(half))
                }
                Some(_) => Some(read(half)),
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
