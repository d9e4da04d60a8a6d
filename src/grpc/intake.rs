//! What of a request is kept, and how much of all requests and answers.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header, uri::PathAndQuery};
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::shares::{Place, Shares};
use crate::{domain::CallerId, service::Error};

/// Bytes of messages that are not there as a whole yet, and of answers that
/// are not read yet, on all connections together. One caller may have three
/// quarters.
const MAX_HELD: usize = 24 * 1024 * 1024;

/// Counted in such pieces.
const PIECE: usize = 16 * 1024;

/// Up to here, the bound on calls is bound enough.
const UNCOUNTED: usize = 4 * 1024;

/// Compressed or not, and the length of the message that follows.
const HEAD: usize = 5;

/// The metadata that somebody reads.
const METADATA: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
    header::TE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-actor"),
    HeaderName::from_static("x-actor-bin"),
];

/// Values of it that nearly all requests have: of these no copy is needed.
const USUAL: [&str; 4] = ["application/grpc", "trailers", "identity", "gzip"];

/// Room for bytes of clients, see [`MAX_HELD`].
#[derive(Clone)]
pub(super) struct Room(Arc<Shares<CallerId>>);

/// Bytes within the room, which they leave when this is dropped.
#[derive(Default)]
pub(super) struct Held(VecDeque<Place<CallerId>>);

impl Room {
    pub(super) fn new() -> Self {
        let pieces = MAX_HELD / PIECE;
        Self(Shares::new(pieces, pieces / 4 * 3))
    }

    /// Makes `held` count so many bytes of this caller.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) fn hold(
        &self,
        caller: &CallerId,
        held: &mut Held,
        bytes: usize,
    ) -> Result<(), Error> {
        let pieces = if bytes <= UNCOUNTED { 0 } else { bytes.div_ceil(PIECE) };
        while held.0.len() < pieces {
            held.0.push_back(self.0.take(caller).ok_or(Error::Overloaded)?);
        }
        held.0.truncate(pieces);
        Ok(())
    }
}

/// The same request, with only the metadata that somebody reads.
///
/// Copied: a slice would keep in memory what it came with.
pub(super) fn lean(request: Request<Body>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let mut kept = HeaderMap::new();
    for name in METADATA {
        for value in parts.headers.get_all(&name) {
            let usual = USUAL.iter().find(|usual| *value == **usual);
            let copy = match usual {
                Some(usual) => HeaderValue::from_static(usual),
                None => match HeaderValue::from_bytes(value.as_bytes()) {
                    Ok(copy) => copy,
                    Err(_) => continue,
                },
            };
            kept.append(name.clone(), copy);
        }
    }
    parts.headers = kept;
    // As a path and nothing else: limits went by it, and must have meant what is served.
    if let Ok(path) = PathAndQuery::try_from(parts.uri.path().to_owned()) {
        parts.uri = path.into();
    }
    Request::from_parts(parts, body)
}

/// The same request, once its one message, of at most `limit` bytes, is there
/// as a whole.
///
/// tonic decodes a message before the client has ended its request. Decoded it
/// takes up to thirty times the room, as long as the client likes.
///
/// # Errors
/// The message is too large, there is no room for it, or the client has left.
pub(super) async fn whole(
    request: Request<Body>,
    limit: usize,
    room: &Room,
    caller: Option<&CallerId>,
) -> Result<Request<Body>, Status> {
    let (parts, mut body) = request.into_parts();
    let mut bytes = BytesMut::new();
    let mut held = Held::default();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        bytes.extend_from_slice(&data);
        if bytes.len() > limit.saturating_add(HEAD) || announced(&bytes) > limit {
            return Err(Error::MessageTooLarge.into());
        }
        // Nobody in particular may only send what is not counted.
        if let Some(caller) = caller {
            room.hold(caller, &mut held, bytes.len())?;
        }
    }
    Ok(Request::from_parts(parts, Body::new(Whole(bytes.freeze()))))
}

/// The length of the message, as far as it is told yet.
fn announced(bytes: &[u8]) -> usize {
    let head = bytes.first_chunk::<HEAD>().copied().unwrap_or_default();
    let [_compressed, length @ ..] = head;
    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX)
}

/// A body that has arrived.
struct Whole(Bytes);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.0.len()).unwrap_or(u64::MAX))
    }
}
