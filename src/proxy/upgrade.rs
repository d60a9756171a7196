//! Connections that become something else than HTTP: WebSockets, above all.
//!
//! Over HTTP/1.1 a client offers with `Upgrade` and the backend accepts with 101; over HTTP/2 the same
//! is an extended CONNECT and a 200 (RFC 8441). Either may be on either side. A client is heard only
//! if it offers one protocol that the service allows, with a GET that has no body, and nothing is
//! tunnelled before the backend has accepted: whatever else came in the same bytes would get past the
//! routes.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header, request, response};
use hyper::{body::Incoming, ext::Protocol as ConnectProtocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    client::{Busy, Client},
    context::Context,
    error::ProxyError,
    exchange::{Held, Routed, send},
    headers,
    tunnel::{Tunnel, Upstream},
    websocket,
};
use crate::model::protocol::Protocol;

const WEBSOCKET: &str = "websocket";
pub(super) const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
pub(super) const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What a client would switch its connection to, and how that is done.
#[derive(Debug)]
pub struct Offer {
    /// As the client has written it.
    protocol: HeaderValue,
    way: Way,
    context: Rc<Context>,
    client: Rc<Client>,
}

#[derive(Debug)]
enum Way {
    /// `Upgrade`: the whole connection is switched once the response is written.
    Http1,
    /// Extended CONNECT: the stream is, once its response is.
    Http2(OnUpgrade),
}

impl Offer {
    /// What an HTTP/1.1 request without a body offers.
    pub(super) fn of_upgrade(
        parts: &request::Parts,
        protocol: HeaderValue,
        allowed: &[String],
        context: &Rc<Context>,
        client: &Rc<Client>,
    ) -> Option<Box<Self>> {
        let fine = parts.method == Method::GET && is_allowed(protocol.as_bytes(), allowed);
        let (context, client) = (Rc::clone(context), Rc::clone(client));
        fine.then(|| Box::new(Self { protocol, way: Way::Http1, context, client }))
    }

    /// What an HTTP/2 request offers, if it is an extended CONNECT; it becomes a GET.
    ///
    /// # Errors
    /// When it is a CONNECT to something that the service does not allow.
    pub(super) fn of_connect(
        parts: &mut request::Parts,
        allowed: &[String],
        context: &Rc<Context>,
        client: &Rc<Client>,
    ) -> Result<Option<Box<Self>>, ProxyError> {
        if parts.method != Method::CONNECT {
            return Ok(None);
        }
        let protocol = parts.extensions.remove::<ConnectProtocol>();
        let protocol = protocol.filter(|protocol| is_allowed(protocol.as_ref(), allowed));
        let protocol = protocol.and_then(|protocol| HeaderValue::from_bytes(protocol.as_ref()).ok());
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let (Some(protocol), Some(on_upgrade)) = (protocol, on_upgrade) else {
            return Err(ProxyError::ConnectMethod);
        };
        parts.method = Method::GET;
        let (context, client) = (Rc::clone(context), Rc::clone(client));
        Ok(Some(Box::new(Self { protocol, way: Way::Http2(on_upgrade), context, client })))
    }

    fn is_websocket(&self) -> bool {
        self.protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes())
    }
}

fn is_allowed(protocol: &[u8], allowed: &[String]) -> bool {
    allowed.iter().any(|name| protocol.eq_ignore_ascii_case(name.as_bytes()))
}

/// A client's connection, or a stream of it, that speaks HTTP no more.
#[derive(Debug)]
pub struct Switched {
    tunnel: Tunnel,
    busy: Busy,
}

impl Switched {
    /// Serves it to its end. `early` is what has been read from it already.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite, early: Bytes) {
        let Self { tunnel, busy } = self;
        tunnel.run(client, early).await;
        drop(busy);
    }
}

/// What became of an offer.
pub(super) enum Opened {
    /// The backend accepts; here is what to tell the client. The tunnel begins by itself.
    Switched(response::Parts),
    /// The backend answers as to any request.
    Declined(Held, Response<Incoming>),
}

/// Passes an offer on to the backend. A tunnel takes over what the exchange holds of its service.
pub(super) async fn open(routed: &mut Routed, exchange: &mut Busy) -> Result<Opened, ProxyError> {
    let offer = routed.offer.take().ok_or(ProxyError::Reset)?;
    let client_key = routed.request.headers().get(KEY).cloned();
    let sent_key = offer_to_backend(routed, &offer)?;
    let (held, response) = send(routed).await?;
    let accepted = match &held {
        Held::Http1(_) => response.status() == StatusCode::SWITCHING_PROTOCOLS,
        Held::Http2(_) => response.status() == StatusCode::OK,
    };
    if !accepted {
        // To a client that waits for a tunnel, success would be one.
        let misread = matches!(offer.way, Way::Http2(_)) && response.status().is_success();
        return if misread { Err(ProxyError::NoUpgrade) } else { Ok(Opened::Declined(held, response)) };
    }
    let (mut head, upstream) = match held {
        Held::Http1(connection) => {
            if !is_what_was_offered(&offer, response.headers(), sent_key.as_ref()) {
                return Err(ProxyError::Reset);
            }
            let (head, _) = response.into_parts();
            let (socket, read) = connection.into_socket().await.ok_or(ProxyError::Reset)?;
            (head, Upstream::Http1(socket, read))
        }
        Held::Http2(lease) => {
            let (mut head, _) = response.into_parts();
            let on_upgrade = head.extensions.remove::<OnUpgrade>().ok_or(ProxyError::Reset)?;
            let upgraded = on_upgrade.await.map_err(|_| ProxyError::Reset)?;
            (head, Upstream::Http2(Box::new(TokioIo::new(upgraded)), lease))
        }
    };
    if let Some(entry) = routed.attempt.entry() {
        entry.head_came(head.status);
    }
    headers::prepare_response(&mut head);
    routed.way.change_response(&mut head.headers);
    let context = Rc::clone(&offer.context);
    let tunnel = Tunnel::new(upstream, routed.attempt.hand_over(), context, routed.wait.timeouts.tunnel);
    let mut busy = offer.client.go_on();
    busy.keep(exchange.take_permit());
    answer(*offer, &mut head, client_key, Switched { tunnel, busy });
    Ok(Opened::Switched(head))
}

/// Makes of the request what the backend's protocol has for an offer. Returns the key that a
/// WebSocket's server has to answer.
fn offer_to_backend(routed: &mut Routed, offer: &Offer) -> Result<Option<HeaderValue>, ProxyError> {
    let request = &mut routed.request;
    if routed.attempt.endpoint().address().protocol == Protocol::Http2 {
        *request.method_mut() = Method::CONNECT;
        // It has no meaning there; what it guards against, HTTP/2 excludes.
        request.headers_mut().remove(KEY);
        let name = offer.protocol.to_str().map_err(|_| ProxyError::NoUpgrade)?;
        request.extensions_mut().insert(ConnectProtocol::from(name));
        return Ok(None);
    }
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, offer.protocol.clone());
    if !offer.is_websocket() {
        return Ok(None);
    }
    if matches!(offer.way, Way::Http2(_)) {
        headers.insert(KEY, websocket::key(offer.context.random()));
    }
    Ok(headers.get(KEY).cloned())
}

/// Whether a 101 is an answer to the offer.
fn is_what_was_offered(offer: &Offer, headers: &http::HeaderMap, key: Option<&HeaderValue>) -> bool {
    let switched = headers
        .get(header::UPGRADE)
        .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(offer.protocol.as_bytes()));
    // One from HTTP/2 has no key of its own, so nobody behind us would check the answer to ours.
    let checked = matches!(offer.way, Way::Http1)
        || key.is_none_or(|key| headers.get(ACCEPT) == Some(&websocket::accept(key)));
    switched && checked
}

/// Words the acceptance for the client, and lets the tunnel begin once it has been written.
fn answer(offer: Offer, head: &mut response::Parts, client_key: Option<HeaderValue>, switched: Switched) {
    let Offer { protocol, way, context: _, client } = offer;
    match way {
        Way::Http1 => {
            if let Some(key) = client_key.filter(|_| head.status != StatusCode::SWITCHING_PROTOCOLS) {
                head.headers.insert(ACCEPT, websocket::accept(&key));
            }
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, protocol);
            client.switch_to(Box::new(switched));
        }
        Way::Http2(on_upgrade) => {
            head.status = StatusCode::OK;
            head.headers.remove(ACCEPT);
            tokio::task::spawn_local(async move {
                if let Ok(upgraded) = on_upgrade.await {
                    switched.run(TokioIo::new(upgraded), Bytes::new()).await;
                }
            });
        }
    }
}
