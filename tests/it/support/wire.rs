//! HTTP/1.1 as bytes, read by hand: the tests must not share a parser, and so its mistakes, with what
//! they test.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::eventually::patience;

/// A socket, and what was read from it and not yet used.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    unused: Vec<u8>,
}

impl Wire {
    pub fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        Self { socket, unused: Vec::new() }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Writes everything; false if the other side is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).is_ok()
    }

    /// Reads some more; false at the end, however it came.
    ///
    /// # Panics
    /// When nothing comes for longer than the tests' patience.
    fn fill(&mut self) -> bool {
        let mut space = [0; 64 * 1024];
        match self.socket.read(&mut space) {
            Ok(0) => false,
            Ok(n) => {
                self.unused.extend_from_slice(&space[..n]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing came in time; so far: {:?}", String::from_utf8_lossy(&self.unused))
            }
            Err(_) => false,
        }
    }

    /// A head up to and without its empty line; nothing if the connection ends before.
    pub fn read_head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.unused, b"\r\n\r\n") {
                let head: Vec<u8> = self.unused.drain(..end + 4).collect();
                return Some(String::from_utf8_lossy(&head[..end]).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// A line without its end; nothing if the connection ends before.
    pub fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.unused, b"\r\n") {
                let line: Vec<u8> = self.unused.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// So many bytes, or as many as came before the end.
    pub fn read_length(&mut self, length: usize) -> Vec<u8> {
        while self.unused.len() < length && self.fill() {}
        let length = length.min(self.unused.len());
        self.unused.drain(..length).collect()
    }

    /// So many bytes, counted and thrown away; how many came before the end.
    pub fn skip(&mut self, length: usize) -> usize {
        let mut left = length;
        while left > 0 {
            let now = left.min(self.unused.len());
            self.unused.drain(..now);
            left -= now;
            if left > 0 && !self.fill() {
                break;
            }
        }
        length - left
    }

    /// Everything until the end of the connection.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.unused)
    }

    /// A body in chunks and its trailers; `Err` with what came if the connection ends before.
    pub fn read_chunked(&mut self) -> Result<(Vec<u8>, String), Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.read_line() else { return Err(body) };
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).expect("a chunk begins with its size");
            if size == 0 {
                let mut trailers = String::new();
                loop {
                    match self.read_line() {
                        None => return Err(body),
                        Some(line) if line.is_empty() => return Ok((body, trailers)),
                        Some(line) => trailers += &(line + "\n"),
                    }
                }
            }
            let chunk = self.read_length(size);
            let whole = chunk.len() == size;
            body.extend(chunk);
            if !whole || self.read_line().as_deref() != Some("") {
                return Err(body);
            }
        }
    }

    /// Waits for the other side to close; what came before that.
    pub fn wait_for_end(&mut self) -> Vec<u8> {
        self.read_to_end()
    }

    /// Closes with a reset instead of a farewell.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The values of a field in a head, in order.
pub fn fields<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}
