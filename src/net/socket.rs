//! A TCP socket that writes small pieces as one, and large bodies without touching them
//! ([`super::splice`]).
//!
//! hyper hands over a head and a body as two slices. The kernel takes longer to gather two slices
//! (`writev`) than to take one (`send`), by more than it costs to put small ones together first.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::splice::{Ends, Pipe, before_void, is_void};

/// Bytes up to which slices are put together: a usual head and a small body.
const GATHER: usize = 4096;

thread_local! {
    /// Where they are put together. One for each thread, since a write either takes them or leaves
    /// them: nothing stays here.
    static WHOLE: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHER));
}

/// A TCP socket that writes small pieces as one.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    ends: Rc<Ends>,
}

impl Socket {
    /// Wraps a connected socket; `ends` say which of its bytes go through a pipe.
    pub fn new(stream: TcpStream, ends: Rc<Ends>) -> Self {
        Self { stream, ends }
    }

    /// The pipes at it.
    pub fn ends(&self) -> &Rc<Ends> {
        &self.ends
    }

    /// Reads into a pipe, and says that as many bytes were read.
    fn poll_fill(&self, cx: &mut Context<'_>, pipe: &Pipe, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !pipe.is_empty_or_wake(cx) {
            return Poll::Pending;
        }
        let len = self.ends.allowance(buf.remaining());
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_io(Interest::READABLE, || pipe.fill(&self.stream, len)) {
                Ok(n) => {
                    self.ends.filled(n);
                    buf.initialize_unfilled_to(n);
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes from a pipe.
    fn poll_drain(&self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        let Some(pipe) = self.ends.outlet() else {
            debug_assert!(false, "what stands in for bytes in a pipe has one");
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        };
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || pipe.drain(&self.stream, len)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    drop(pipe);
                    self.ends.release();
                    return Poll::Ready(done);
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.ends.inlet() {
            Some(pipe) => self.poll_fill(cx, &pipe, buf),
            None => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if is_void(buf) {
            return self.poll_drain(cx, buf.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(piped) = bufs.iter().find(|buf| !buf.is_empty()).filter(|buf| is_void(buf)) {
            return self.poll_drain(cx, piped.len());
        }
        let bufs = before_void(bufs);
        let socket = Pin::new(&mut self.stream);
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        let (Some(first), rest) = (filled.next(), filled.clone()) else { return Poll::Ready(Ok(0)) };
        if filled.next().is_none() {
            return socket.poll_write(cx, first);
        }
        let total = first.len() + rest.clone().map(|buf| buf.len()).sum::<usize>();
        if total > GATHER {
            return socket.poll_write_vectored(cx, bufs);
        }
        WHOLE.with_borrow_mut(|whole| {
            whole.clear();
            whole.extend_from_slice(first);
            rest.for_each(|buf| whole.extend_from_slice(buf));
            socket.poll_write(cx, whole)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn slices_arrive_in_order_whatever_their_sizes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connect, listener.accept());
        let (mut socket, mut peer) = (Socket::new(connected.unwrap(), Rc::default()), accepted.unwrap().0);
        for sizes in [&[0][..], &[5], &[0, 5], &[5, 0, 7], &[4000, 97], &[4000, 96], &[1, 5000]] {
            let data: Vec<Vec<u8>> = (1u8..).zip(sizes).map(|(byte, size)| vec![byte; *size]).collect();
            let slices: Vec<IoSlice<'_>> = data.iter().map(|d| IoSlice::new(d)).collect();
            let total: usize = sizes.iter().sum();
            assert_eq!(socket.write_vectored(&slices).await.unwrap(), total, "{sizes:?}");
            let mut got = vec![0; total];
            peer.read_exact(&mut got).await.unwrap();
            assert_eq!(got, data.concat(), "{sizes:?}");
        }
    }
}
