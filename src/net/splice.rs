//! Bytes that go from one socket to another inside the kernel, through a pipe (`splice(2)`), without
//! a copy into the process and back out of it: a large body costs half as much.
//!
//! hyper must count what it passes on, so it is given stand-ins of the same length. The reading
//! socket moves bytes into a pipe and tells hyper that it has read as many. Whoever takes such a chunk
//! from hyper asks what it stands for ([`Ends::chunk`]) and hands on a [`Chunk::Piped`] instead, whose
//! bytes lie in one array of zeros (`VOID`) and nowhere else. The writing socket knows them by their
//! address, and moves bytes out of its pipe in their place. Both sides keep the order of the stream, and
//! so does the pipe: what is real and what stands in for something cannot be mixed up.

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    task::{Context, Waker},
};

use bytes::{Buf, Bytes};

/// What stands in for bytes in a pipe. Nothing else may ever point into it.
static VOID: [u8; 64 * 1024] = [0; 64 * 1024];

/// Bytes still to come from which on a body goes through a pipe. Below, a pipe costs more than it saves.
const WORTH_A_PIPE: u64 = 64 * 1024;

/// Empty pipes that one thread keeps for the next body.
const MAX_IDLE: usize = 64;

thread_local! {
    static IDLE: RefCell<Vec<Rc<Pipe>>> = const { RefCell::new(Vec::new()) };
}

/// Whether a slice to be written stands in for bytes in a pipe.
#[inline]
pub(super) fn is_void(slice: &[u8]) -> bool {
    VOID.as_ptr_range().contains(&slice.as_ptr())
}

/// The slices before the first that stands in for others.
#[inline]
pub(super) fn before_void<'a, 'b>(slices: &'a [IoSlice<'b>]) -> &'a [IoSlice<'b>] {
    let end = slices.iter().position(|slice| is_void(slice)).unwrap_or(slices.len());
    &slices[..end]
}

/// A piece of a body.
#[derive(Debug)]
pub enum Chunk {
    /// Its bytes.
    Bytes(Bytes),
    /// How many bytes of it wait in the pipe of the socket that it will be written to.
    Piped(usize),
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Piped(len) => *len,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Piped(len) => &VOID[..(*len).min(VOID.len())],
        }
    }

    fn advance(&mut self, n: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(n),
            Self::Piped(len) => *len = len.checked_sub(n).expect("no further than its end"),
        }
    }
}

/// A pipe and what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: Cell<usize>,
    /// Whoever waits for it to be empty.
    waiting: RefCell<Option<Waker>>,
}

impl Pipe {
    /// An empty pipe, if the process may have one.
    fn obtain() -> io::Result<Rc<Self>> {
        if let Some(pipe) = IDLE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (out, into) = kernel::pipe()?;
        Ok(Rc::new(Self { out, into, held: Cell::new(0), waiting: RefCell::default() }))
    }

    /// Keeps it for another body, if it is empty and nobody else has it.
    fn release(self: Rc<Self>) {
        if self.held.get() == 0 && Rc::strong_count(&self) == 1 {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < MAX_IDLE {
                    idle.push(self);
                }
            });
        }
    }

    /// Moves bytes from a socket into the pipe, which must be empty: a full one says the same as a
    /// socket that has nothing.
    pub(super) fn fill(&self, socket: &impl AsFd, len: usize) -> io::Result<usize> {
        let n = kernel::splice(socket.as_fd(), self.into.as_fd(), len)?;
        self.held.set(self.held.get() + n);
        Ok(n)
    }

    /// Moves bytes from the pipe to a socket, and wakes whoever waits for the last of them to go.
    pub(super) fn drain(&self, socket: &impl AsFd, len: usize) -> io::Result<usize> {
        let n = kernel::splice(self.out.as_fd(), socket.as_fd(), len)?;
        self.held.set(self.held.get() - n);
        if self.held.get() == 0
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
        Ok(n)
    }

    /// Whether it is empty; if not, the task is woken when it is.
    pub(super) fn is_empty_or_wake(&self, cx: &Context<'_>) -> bool {
        if self.held.get() == 0 {
            return true;
        }
        *self.waiting.borrow_mut() = Some(cx.waker().clone());
        false
    }
}

/// The pipes at a socket: one that it is read into, one that it is written from.
#[derive(Debug, Default)]
pub struct Ends {
    inlet: RefCell<Option<Rc<Pipe>>>,
    /// Bytes that may yet be read into the inlet.
    budget: Cell<u64>,
    /// Bytes that were, and that hyper believes to have in its buffer.
    diverted: Cell<usize>,
    outlet: RefCell<Option<Rc<Pipe>>>,
}

impl Ends {
    /// What a piece of a body that hyper has read here stands for; nothing if hyper says that it has
    /// read something else than what went into the pipe, which is impossible.
    ///
    /// With the first piece, all that hyper had read of the body beside the head is taken out of its
    /// buffer. If much is left, what is still in the socket takes the short way to `to`.
    pub fn chunk(&self, bytes: Bytes, left: Option<u64>, to: Option<&Self>) -> Option<Chunk> {
        let chunk = match self.diverted.take() {
            0 => Chunk::Bytes(bytes),
            piped if piped == bytes.len() => Chunk::Piped(piped),
            _ => return None,
        };
        if let (Some(left), Some(to)) = (left, to)
            && left >= WORTH_A_PIPE
            && self.budget.get() == 0
        {
            self.divert(to, left);
        }
        Some(chunk)
    }

    /// From now on the next `budget` bytes that are read here wait in a pipe for being written to
    /// `to`. Where no pipe can be had, they are read as ever.
    fn divert(&self, to: &Self, budget: u64) {
        let mut outlet = to.outlet.borrow_mut();
        if outlet.is_none() {
            *outlet = Pipe::obtain().ok();
        }
        if let Some(pipe) = &*outlet {
            self.budget.set(budget);
            *self.inlet.borrow_mut() = Some(Rc::clone(pipe));
        }
    }

    /// What is read from now on is read as ever.
    pub fn end(&self, to: &Self) {
        self.budget.set(0);
        self.inlet.take();
        to.release();
    }

    /// Whether all that was to be written from a pipe has been.
    pub fn is_drained(&self) -> bool {
        self.outlet.borrow().as_ref().is_none_or(|pipe| pipe.held.get() == 0)
    }

    /// The pipe to read into, if bytes are to be read into one.
    #[inline]
    pub(super) fn inlet(&self) -> Option<Rc<Pipe>> {
        if self.budget.get() == 0 { None } else { self.inlet.borrow().clone() }
    }

    /// The most bytes that may be read into the pipe at once.
    pub(super) fn allowance(&self, room: usize) -> usize {
        room.min(VOID.len()).min(usize::try_from(self.budget.get()).unwrap_or(usize::MAX))
    }

    /// Bytes have been read into the pipe.
    pub(super) fn filled(&self, n: usize) {
        self.budget.set(self.budget.get() - n as u64);
        self.diverted.set(self.diverted.get() + n);
    }

    /// The pipe to write from.
    pub(super) fn outlet(&self) -> Option<Rc<Pipe>> {
        self.outlet.borrow().clone()
    }

    /// Gives the pipe to write from back, if nothing is in it and nothing will be.
    pub(super) fn release(&self) {
        let mut outlet = self.outlet.borrow_mut();
        if outlet.as_ref().is_some_and(|pipe| pipe.held.get() == 0 && Rc::strong_count(pipe) == 1)
            && let Some(pipe) = outlet.take()
        {
            pipe.release();
        }
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::{
        io,
        os::fd::{BorrowedFd, OwnedFd},
    };

    use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with};

    pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
    }

    pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        Ok(rustix::pipe::splice(from, None, to, None, len, flags)?)
    }
}

/// Elsewhere no pipe is to be had, and bytes are read and written as ever.
#[cfg(not(target_os = "linux"))]
mod kernel {
    use std::{
        io,
        os::fd::{BorrowedFd, OwnedFd},
    };

    pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn splice(_: BorrowedFd<'_>, _: BorrowedFd<'_>, _: usize) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::{super::socket::Socket, *};

    async fn pair(ends: Rc<Ends>) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connect, listener.accept());
        (Socket::new(connected.unwrap(), ends), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_go_through_the_pipe_in_order_and_only_as_many_as_were_meant_to() {
        let (from, to) = (Rc::<Ends>::default(), Rc::<Ends>::default());
        let (mut reader, mut sender) = pair(Rc::clone(&from)).await;
        let (mut writer, mut receiver) = pair(Rc::clone(&to)).await;
        sender.write_all(b"0123456789").await.unwrap();
        from.divert(&to, 4);
        let mut read = [0; 8];
        assert_eq!(reader.read(&mut read).await.unwrap(), 4);
        assert_eq!((from.diverted.take(), &read[..4]), (4, &[0; 4][..]));
        assert!(!to.is_drained() && from.budget.get() == 0);
        assert_eq!(reader.read(&mut read).await.unwrap(), 6);
        assert_eq!((from.diverted.take(), &read[..6]), (0, &b"456789"[..]));
        from.end(&to);

        let chunk = Chunk::Piped(4);
        let slices = [IoSlice::new(b"head "), IoSlice::new(chunk.chunk()), IoSlice::new(b" tail")];
        assert_eq!(writer.write_vectored(&slices).await.unwrap(), 5, "up to the pipe");
        assert_eq!(writer.write_vectored(&slices[1..]).await.unwrap(), 4, "the pipe alone");
        assert_eq!(writer.write_vectored(&slices[2..]).await.unwrap(), 5);
        assert!(to.is_drained() && to.outlet().is_none(), "the pipe is free for another");
        let mut got = [0; 14];
        receiver.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"head 0123 tail");
    }

    #[test]
    fn only_what_much_is_left_of_goes_through_a_pipe_and_only_in_step() {
        let (from, to) = (Ends::default(), Ends::default());
        let read = Bytes::from_static(b"read");
        let next = |left, to| from.chunk(read.clone(), left, to);
        for (left, to) in [(None, Some(&to)), (Some(WORTH_A_PIPE - 1), Some(&to)), (Some(u64::MAX), None)] {
            assert!(matches!(next(left, to), Some(Chunk::Bytes(bytes)) if bytes == "read"));
            assert!(from.inlet().is_none());
        }
        assert!(matches!(next(Some(WORTH_A_PIPE), Some(&to)), Some(Chunk::Bytes(_))));
        assert!(from.inlet().is_some() && to.outlet().is_some());
        from.filled(4);
        assert!(matches!(next(None, None), Some(Chunk::Piped(4))));
        from.filled(5);
        assert!(next(None, None).is_none(), "one byte more than hyper says");
    }

    #[test]
    fn a_piece_in_a_pipe_is_as_long_as_it_says() {
        let mut chunk = Chunk::Piped(VOID.len() + 10);
        assert_eq!((chunk.remaining(), chunk.chunk().len()), (VOID.len() + 10, VOID.len()));
        chunk.advance(VOID.len());
        assert_eq!(chunk.chunk().len(), 10);
        assert!(is_void(chunk.chunk()) && !is_void(b"else") && !is_void(&[]));
    }
}
