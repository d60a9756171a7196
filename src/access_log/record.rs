//! What is known of an exchange once it has ended.
//!
//! Texts are copied into one small buffer. Keeping the fields of the head instead would keep all of the
//! buffer that they were read into, for as long as the writer likes.

use std::{net::IpAddr, time::Duration};

use crate::model::time::Timestamp;

/// Most bytes of one text; the rest is cut off. A head may have 64 KiB, and a queue many heads.
pub const LONGEST_TEXT: usize = 2048;

/// Bytes that are set aside at first: enough for the texts of most requests.
const USUAL: usize = 256;

/// An exchange that has ended.
#[derive(Debug, Clone)]
pub struct Record {
    /// When its head was there.
    pub at: Timestamp,
    /// The client's address.
    pub client: IpAddr,
    /// What the client spoke.
    pub protocol: &'static str,
    /// The response's status, if there was a response.
    pub status: Option<u16>,
    /// Bytes of body from the client.
    pub bytes_in: u64,
    /// Bytes of body to the client.
    pub bytes_out: u64,
    /// From the head to the end.
    pub duration: Duration,
    /// From the request's head to the head of the backend's response, if one came.
    pub head_after: Option<Duration>,
    /// The role that the backend held.
    pub role: Option<&'static str>,
    /// Why that backend was chosen.
    pub assignment: Option<&'static str>,
    /// Attempts at backends, of which the last is the one that is told of.
    pub attempts: u32,
    /// Why Tidegate answered itself, if it did.
    pub local_reply: Option<&'static str>,
    /// What became of the attempt at the backend, in the words of the metrics.
    pub outcome: Option<&'static str>,
    /// The trace that it belongs to, if it has spans.
    pub trace_id: Option<u128>,
    /// What is text, much of it the client's.
    pub texts: Texts,
}

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// The request's method.
    Method,
    /// The host that was asked for.
    Host,
    /// The path with its query, as it was sent.
    Path,
    /// `User-Agent`.
    UserAgent,
    /// `Referer`.
    Referer,
    /// The service's name.
    Service,
    /// The backend's name.
    Backend,
    /// The endpoint's address.
    Endpoint,
}

impl Text {
    /// Every text.
    pub const ALL: [Self; 8] = [
        Self::Method,
        Self::Host,
        Self::Path,
        Self::UserAgent,
        Self::Referer,
        Self::Service,
        Self::Backend,
        Self::Endpoint,
    ];
}

/// The texts of one exchange.
#[derive(Debug, Clone)]
pub struct Texts {
    bytes: Vec<u8>,
    /// Where each begins and ends. `u16` is enough for eight of the longest, and for the names of backends
    /// and endpoints that take the place of others: there are at most as many as tries.
    places: [Option<(u16, u16)>; Text::ALL.len()],
}

impl Default for Texts {
    fn default() -> Self {
        Self { bytes: Vec::with_capacity(USUAL), places: [None; Text::ALL.len()] }
    }
}

impl Texts {
    /// Notes a text, unless that one is there already.
    pub fn set(&mut self, text: Text, bytes: &[u8]) {
        let place = &mut self.places[text as usize];
        if place.is_none() {
            let begin = self.bytes.len();
            self.bytes.extend_from_slice(&bytes[..bytes.len().min(LONGEST_TEXT)]);
            *place = Some((begin as u16, self.bytes.len() as u16));
        }
    }

    /// Notes a text in the place of one that may be there already.
    pub fn replace(&mut self, text: Text, bytes: &[u8]) {
        self.places[text as usize] = None;
        self.set(text, bytes);
    }

    /// The text, if there is one.
    pub fn get(&self, text: Text) -> Option<&[u8]> {
        let (begin, end) = self.places[text as usize]?;
        self.bytes.get(usize::from(begin)..usize::from(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_cut_where_it_is_too_long() {
        let mut texts = Texts::default();
        assert_eq!(texts.get(Text::Path), None);
        for text in Text::ALL {
            texts.set(text, &[b'a' + text as u8; 70_000]);
            texts.set(text, b"later");
        }
        for text in Text::ALL {
            assert_eq!(texts.get(text), Some(&[b'a' + text as u8; LONGEST_TEXT][..]));
        }
    }

    #[test]
    fn a_text_may_take_the_place_of_another() {
        let mut texts = Texts::default();
        for bytes in [&b"v2"[..], b"v1"] {
            texts.replace(Text::Backend, bytes);
            assert_eq!(texts.get(Text::Backend), Some(bytes));
        }
    }

    #[test]
    fn an_empty_text_is_not_the_same_as_none() {
        let mut texts = Texts::default();
        texts.set(Text::Referer, b"");
        assert_eq!((texts.get(Text::Referer), texts.get(Text::UserAgent)), (Some(&b""[..]), None));
    }
}
