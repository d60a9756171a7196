//! A TCP socket that writes small pieces as one.
//!
//! hyper hands over a head and a body as two slices. The kernel takes longer to gather two slices
//! (`writev`) than to take one (`send`), by more than it costs to put small ones together first.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Bytes up to which slices are put together: a usual head and a small body.
const GATHER: usize = 4096;

thread_local! {
    /// Where they are put together. One for each thread, since a write either takes them or leaves
    /// them: nothing stays here.
    static WHOLE: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHER));
}

/// A TCP socket that writes small pieces as one.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Socket {
    /// Wraps a connected socket.
    pub fn new(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = Pin::new(&mut self.0);
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
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
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
        let (mut socket, mut peer) = (Socket::new(connected.unwrap()), accepted.unwrap().0);
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
