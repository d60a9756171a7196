//! HTTP/2 as a weapon: frames that cost their sender nothing. The connection ends or stands still,
//! others are served meanwhile, and the process does not grow.
//!
//! Raw frames against the program itself, so that its memory is its own. Every loop has an end.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::support::{Backend, Web, get, patience};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET http://x/` in HPACK, all from the static table but for the authority.
const GET: &[u8] = b"\x82\x86\x84\x01\x01x";
/// `POST http://x/`.
const POST: &[u8] = b"\x83\x86\x84\x01\x01x";

/// What the process may grow by: many times what one connection may hold, and far below what is sent.
const GROWTH: usize = 16 * 1024 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The program, with a backend that answers at once.
struct Program {
    child: Child,
    address: SocketAddr,
    _backend: Backend,
    _folder: tempfile::TempDir,
}

impl Program {
    /// Starts it; `silence` is how long clients may be silent. Where a test has more than its own, a
    /// connection that ends has been ended for what came on it.
    fn start(silence: &str) -> Self {
        let backend = Backend::named("v1");
        let keys = format!("header_timeout = '{silence}'\nidle_timeout = '{silence}'\n");
        let web = Web::new(backend.address).listener(&keys);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidegate.toml");
        fs::write(&path, web.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["run", "--config"])
            .arg(&path)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let said = |line: String| line.split_once("\"listening on ")?.1.split('"').next()?.parse().ok();
        let (give, take) = mpsc::channel::<SocketAddr>();
        // Reads to the end, so that the program can go on saying things.
        thread::spawn(move || {
            for address in lines.filter_map(said) {
                // Gone only if the test is over.
                let _gone = give.send(address);
            }
        });
        // Whole before anything can fail, so that it is ended if something does.
        let nowhere = ([127, 0, 0, 1], 0).into();
        let mut program = Self { child, address: nowhere, _backend: backend, _folder: folder };
        program.address = take.recv_timeout(patience()).expect("it says where it listens");
        // Once, so that what is made at first use is made.
        assert_eq!(get(program.address, "/").status, 200);
        program
    }

    /// Bytes of memory that it has, where the system says so.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let Ok(status) = status else { return 0 };
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// Sends `flood(0)`, `flood(1)` … until the program ends the connection or stops reading, at most
    /// `times`; the error code that it ended the connection with, if it said one.
    fn attack(&self, times: u32, flood: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
        let before = self.memory();
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        opening.extend(frame(SETTINGS, 0, 0, &[]));
        socket.write_all(&opening).unwrap();
        // It may be ended, or stand still, long before the last.
        let _sent = (0..times).take_while(|i| socket.write_all(&flood(*i)).is_ok()).count();
        let grown = self.memory().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes more");
        assert_eq!(get(self.address, "/").status, 200, "others are served");
        let mut said = Vec::new();
        // A reset takes away what was not read yet.
        let end = socket.read_to_end(&mut said);
        let timed_out = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "the connection did not end");
        goaway(&said)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ours, and a test that failed leaves none behind.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The error code of the last GOAWAY among frames.
fn goaway(mut frames: &[u8]) -> Option<u32> {
    let mut code = None;
    while let Some(([a, b, c, kind, _, _, _, _, _], rest)) = frames.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        if *kind == GOAWAY {
            code = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
        }
        frames = rest;
    }
    code
}

const FLOW_CONTROL_ERROR: u32 = 3;
const CALM: u32 = 11;

/// A batch of streams, numbered on from batch to batch.
fn streams(batch: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..100).flat_map(|i| each(2 * (100 * batch + i) + 1)).collect()
}

#[test]
fn streams_that_are_opened_and_reset_end_the_connection() {
    let program = Program::start("1h");
    let code = program.attack(2000, |batch| {
        streams(batch, |stream| {
            let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET);
            both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            both
        })
    });
    assert!(code.is_none_or(|code| code == CALM), "{code:?}");
}

#[test]
fn streams_that_we_have_to_reset_end_the_connection() {
    let program = Program::start("1h");
    program.attack(2000, |batch| {
        streams(batch, |stream| {
            let mut both = frame(HEADERS, END_HEADERS, stream, POST);
            // No increment: an error of the stream, which is ours to reset (CVE-2025-8671).
            both.extend(frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes()));
            both
        })
    });
}

#[test]
fn a_head_that_never_ends_ends_the_connection() {
    let program = Program::start("1h");
    let mut fields = Vec::new();
    for i in 0..200 {
        // A literal field that the table does not keep: `x-NNN: aaa…`, 64 bytes of it.
        fields.extend([0, 5]);
        fields.extend(format!("x-{i:03}").bytes());
        fields.push(64);
        fields.extend([b'a'; 64]);
    }
    program.attack(2000, |i| match i {
        0 => frame(HEADERS, END_STREAM, 1, GET),
        _ => frame(CONTINUATION, 0, 1, &fields),
    });
}

#[test]
fn empty_continuations_end_the_connection() {
    let program = Program::start("1h");
    program.attack(2000, |i| match i {
        0 => frame(HEADERS, END_STREAM, 1, GET),
        _ => frame(CONTINUATION, 0, 1, &[]).repeat(1000),
    });
}

#[test]
fn empty_data_ends_the_connection() {
    let program = Program::start("1h");
    let code = program.attack(2000, |i| match i {
        0 => frame(HEADERS, END_HEADERS, 1, POST),
        // 18 MB in all, so that the kernel cannot hold what nobody reads.
        _ => frame(DATA, 0, 1, &[]).repeat(1000),
    });
    assert!(code.is_none_or(|code| code == CALM), "{code:?}");
}

#[test]
fn pings_are_not_gathered_for_a_client_that_reads_no_answer() {
    let program = Program::start("1s");
    // 34 MB; what the kernel holds of it and of the answers is not ours.
    program.attack(2000, |_| frame(PING, 0, 0, &[0; 8]).repeat(1000));
}

#[test]
fn settings_are_not_gathered_for_a_client_that_reads_no_answer() {
    let program = Program::start("1s");
    program.attack(2000, |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(1000));
}

#[test]
fn a_window_that_overflows_ends_the_connection() {
    let program = Program::start("1h");
    let code = program.attack(10, |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()));
    assert!(code.is_none_or(|code| code == FLOW_CONTROL_ERROR), "{code:?}");
}
