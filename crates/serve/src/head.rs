//! Heads as they are handed on: to the program, with the fields that the front sets, and back to the client.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Uri, Version, request, response};

use crate::peer::Peer;
use crate::syntax::{LINE_BYTES_MAX, Refusal, check_fields, check_host, check_target};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// The field that carries a request's id.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer chain of proxies than this is not told in full.
const FORWARDED_BYTES_MAX: usize = 4096;

/// Facts about a request that its head does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) peer: Peer,
    /// The peer may say for whom it asks.
    pub(crate) is_trusted: bool,
    /// The scheme by which it came: `http` or `https`.
    pub(crate) scheme: &'static str,
}

/// A protocol that the client would rather speak, if the head asks for one.
pub(crate) fn upgrade(parts: &request::Parts) -> Option<HeaderValue> {
    let wants = parts.version == Version::HTTP_11
        && values(&parts.headers, &header::CONNECTION)
            .any(|option| option.eq_ignore_ascii_case("upgrade"));
    wants
        .then(|| parts.headers.get(header::UPGRADE).cloned())
        .flatten()
}

/// Elements of a field that is a list, in all of its lines.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Takes away what belongs to one connection only (RFC 9110, 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = values(headers, &header::CONNECTION)
        .filter_map(|option| option.parse().ok())
        // They say where a message ends and whose it is: nobody may take them away by naming them.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    let always = [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    for name in named.iter().chain(&always) {
        headers.remove(name);
    }
}

/// The host that a request is for. A target with a host and a field `Host` that differ are refused.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let field = headers.get(header::HOST);
    let bad = |reason| Refusal {
        status: StatusCode::BAD_REQUEST,
        reason,
    };
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(bad("there is not one Host"));
    }
    let Some(authority) = uri.authority() else {
        let field = field.cloned().unwrap_or(HeaderValue::from_static(""));
        check_host(field.as_bytes())?;
        return Ok(field);
    };
    if authority.as_str().contains('@') {
        return Err(bad("the target names a user"));
    }
    check_host(authority.as_str().as_bytes())?;
    let is_same = |field: &HeaderValue| {
        (field.as_bytes()).eq_ignore_ascii_case(authority.as_str().as_bytes())
    };
    if !field.is_none_or(is_same) {
        return Err(bad("Host is not that of the target"));
    }
    HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the target has no proper host"))
}

/// The head as the program gets it: one request of HTTP/1.1 and the last of its connection. The length of the
/// body is not in it yet.
pub(crate) fn for_program(
    parts: &request::Parts,
    origin: Origin,
    id: &str,
    upgrade: Option<&HeaderValue>,
) -> Result<Request<()>, Refusal> {
    let bad = |reason| Refusal {
        status: StatusCode::BAD_REQUEST,
        reason,
    };
    let host = host_of(&parts.uri, &parts.headers)?;
    let path = match parts.uri.path_and_query() {
        Some(path) => path.as_str(),
        None => "/",
    };
    if path.len() > LINE_BYTES_MAX {
        return Err(Refusal {
            status: StatusCode::URI_TOO_LONG,
            reason: "the target is too long",
        });
    }
    check_target(path.as_bytes(), parts.method.as_str().as_bytes())?;
    if !(path.starts_with('/') || path == "*") {
        return Err(bad("the target is no path"));
    }
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = path.parse().map_err(|_| bad("the target is no path"))?;
    let mut headers = parts.headers.clone();
    remove_hop_by_hop(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::EXPECT);
    headers.remove(header::HOST);
    join_cookies(&mut headers);
    // A head of HTTP/2 has not passed the guard: what HTTP/1 may not say, it may not either.
    check_fields(&headers)?;
    set_forwarded(&mut headers, origin, &host);
    let id = HeaderValue::from_str(id).map_err(|_| bad("the request's id is no field"))?;
    headers.insert(X_REQUEST_ID, id);
    match upgrade {
        Some(protocol) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
        }
        None => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    // First, as every client writes it.
    let all = request.headers_mut();
    all.insert(header::HOST, host);
    all.extend(headers);
    Ok(request)
}

/// HTTP/2 may send a line for each cookie (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

fn set_forwarded(headers: &mut HeaderMap, origin: Origin, host: &HeaderValue) {
    let kept = |headers: &HeaderMap, name: &HeaderName| {
        let lines: Vec<&str> = headers
            .get_all(name)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .collect();
        let joined = lines.join(", ");
        (origin.is_trusted && !joined.is_empty() && joined.len() <= FORWARDED_BYTES_MAX)
            .then_some(joined)
    };
    let chain = kept(headers, &X_FORWARDED_FOR);
    let proto = kept(headers, &X_FORWARDED_PROTO);
    let forwarded_host = kept(headers, &X_FORWARDED_HOST);
    let forwarded = kept(headers, &header::FORWARDED);
    for name in [
        &X_FORWARDED_FOR,
        &X_FORWARDED_PROTO,
        &X_FORWARDED_HOST,
        &header::FORWARDED,
    ] {
        headers.remove(name);
    }
    let node = match origin.peer {
        Peer::Unix => "unknown".to_owned(),
        Peer::Inet(address) => match address.ip().to_canonical() {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("\"[{address}]\""),
        },
    };
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    let after = |before: Option<String>, last: String| match before {
        Some(before) => format!("{before}, {last}"),
        None => last,
    };
    match origin.peer {
        Peer::Inet(_) => set(X_FORWARDED_FOR, after(chain, origin.peer.to_string())),
        // It has no address. Those whom a trusted proxy names are enough.
        Peer::Unix => {
            if let Some(chain) = chain {
                set(X_FORWARDED_FOR, chain);
            }
        }
    }
    set(
        X_FORWARDED_PROTO,
        proto.unwrap_or_else(|| origin.scheme.to_owned()),
    );
    let host = host.to_str().unwrap_or_default();
    if !host.is_empty() || forwarded_host.is_some() {
        set(
            X_FORWARDED_HOST,
            forwarded_host.unwrap_or_else(|| host.to_owned()),
        );
    }
    let mut element = format!("for={node};proto={}", origin.scheme);
    if !host.is_empty() {
        element.push_str(&format!(";host=\"{host}\""));
    }
    set(header::FORWARDED, after(forwarded, element));
}

/// Has the fields of an answer's head say where its body ends in one way only, and as hyper has read it: `length` is
/// that of a body that has one. False if nobody can tell: a coding that the client would have to undo is in it.
pub(crate) fn settle_framing(parts: &mut response::Parts, length: Option<u64>) -> bool {
    let headers = &mut parts.headers;
    let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if is_chunked {
        let mut codings = values(headers, &header::TRANSFER_ENCODING);
        let is_known = codings
            .next()
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
            && codings.next().is_none();
        let is_text =
            (headers.get_all(header::TRANSFER_ENCODING).iter()).all(|value| value.to_str().is_ok());
        if !is_known || !is_text {
            return false;
        }
    }
    // Of an answer to HEAD, and of 304: what the body would have.
    let said = values(headers, &header::CONTENT_LENGTH)
        .map(|value| value.parse::<u64>().ok())
        .reduce(|first, next| first.filter(|first| next == Some(*first)))
        .flatten();
    let had_length = headers.remove(header::CONTENT_LENGTH).is_some();
    let can_have_length =
        parts.status != StatusCode::NO_CONTENT && !parts.status.is_informational();
    if let Some(length) = length.or(said).filter(|_| had_length)
        && can_have_length
        && !is_chunked
    {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    true
}

/// The head as the client gets it: without what belonged to the program's connection.
pub(crate) fn for_client(parts: &mut response::Parts, id: &str) {
    remove_hop_by_hop(&mut parts.headers);
    // hyper says which version it speaks.
    parts.version = Version::HTTP_11;
    if let Ok(id) = HeaderValue::from_str(id) {
        parts.headers.entry(X_REQUEST_ID).or_insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUSTED: Origin = Origin {
        peer: Peer::Inet(std::net::SocketAddr::new(
            std::net::IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4)),
            5,
        )),
        is_trusted: true,
        scheme: "http",
    };
    const STRANGER: Origin = Origin {
        is_trusted: false,
        ..TRUSTED
    };

    fn passed(origin: Origin, uri: &str, fields: &[(&str, &str)]) -> Result<Request<()>, Refusal> {
        let mut request = Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        for_program(&parts, origin, "id", upgrade(&parts).as_ref())
    }

    fn field<'a>(request: &'a Request<()>, name: &str) -> Vec<&'a str> {
        let all = request.headers().get_all(name).iter();
        all.map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn a_stranger_cannot_say_who_it_is() {
        let said = [
            ("host", "h"),
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=9.9.9.9"),
            ("traceparent", "00-x-y-01"),
        ];
        let request = passed(STRANGER, "/a?b", &said).unwrap();
        assert_eq!(request.uri(), "/a?b");
        assert_eq!(field(&request, "host"), ["h"]);
        assert_eq!(field(&request, "x-forwarded-for"), ["1.2.3.4"]);
        assert_eq!(field(&request, "x-forwarded-proto"), ["http"]);
        assert_eq!(field(&request, "x-forwarded-host"), ["h"]);
        assert_eq!(
            field(&request, "forwarded"),
            ["for=1.2.3.4;proto=http;host=\"h\""]
        );
        assert_eq!(field(&request, "x-request-id"), ["id"]);
        assert_eq!(field(&request, "connection"), ["close"]);
        assert_eq!(field(&request, "traceparent"), ["00-x-y-01"]);
        let request = passed(TRUSTED, "/", &said).unwrap();
        assert_eq!(field(&request, "x-forwarded-for"), ["9.9.9.9, 1.2.3.4"]);
        assert_eq!(field(&request, "x-forwarded-proto"), ["https"]);
        assert_eq!(field(&request, "x-forwarded-host"), ["evil"]);
    }

    #[test]
    fn what_belongs_to_a_connection_stays_there() {
        let request = passed(
            STRANGER,
            "/",
            &[
                ("host", "h"),
                ("connection", "keep-alive, X-Mine, Host, Content-Length"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("upgrade", "websocket"),
                ("proxy-authorization", "x"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ],
        )
        .unwrap();
        for gone in [
            "x-mine",
            "keep-alive",
            "te",
            "upgrade",
            "proxy-authorization",
        ] {
            assert!(field(&request, gone).is_empty(), "{gone}");
        }
        assert_eq!(field(&request, "connection"), ["close"]);
        assert_eq!(field(&request, "host"), ["h"]);
        assert_eq!(field(&request, "cookie"), ["a=1; b=2"]);
    }

    #[test]
    fn an_upgrade_is_asked_for_when_both_fields_are_there() {
        let fields = [
            ("host", "h"),
            ("connection", "x, Upgrade"),
            ("upgrade", "ws"),
        ];
        let request = passed(STRANGER, "/", &fields).unwrap();
        assert_eq!(field(&request, "connection"), ["upgrade"]);
        assert_eq!(field(&request, "upgrade"), ["ws"]);
    }

    #[test]
    fn what_has_not_passed_the_guard_is_checked_as_well() {
        let status = |uri: &str, fields: &[(&str, &str)]| {
            passed(STRANGER, uri, fields).map_or_else(|refusal| refusal.status.as_u16(), |_| 200)
        };
        let many: Vec<(&str, &str)> = vec![("x", "y"); 101];
        let crumbs: Vec<(&str, &str)> = vec![("cookie", "a=b"); 150];
        let long = "x".repeat(LINE_BYTES_MAX);
        for (uri, fields, wanted) in [
            ("http://a,b/", &[][..], 400),
            ("/", &[("x_forwarded_for", "9.9.9.9")], 400),
            ("/", &[("x_request-id", "mine")], 400),
            ("/", &[("transfer_encoding", "chunked")], 400),
            ("/", &[("my_field", "1")], 200),
            ("*", &[], 400),
            ("/", &many, 431),
            ("/", &crumbs, 200),
            ("/", &[("x", long.as_str())], 431),
            (&format!("/{long}"), &[], 414),
        ] {
            assert_eq!(status(uri, fields), wanted, "{uri} {fields:?}");
        }
    }

    fn settled(status: u16, fields: &[(&str, &str)], length: Option<u64>) -> Option<Vec<String>> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        let said = settle_framing(&mut parts, length);
        let lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
        let lengths = lengths.map(|value| value.to_str().unwrap().to_owned());
        said.then(|| lengths.collect())
    }

    #[test]
    fn an_answer_says_its_length_once() {
        const LENGTH: &str = "content-length";
        const CODING: &str = "transfer-encoding";
        let one = |length: &str| Some(vec![length.to_owned()]);
        let none = || Some(Vec::new());
        assert_eq!(settled(200, &[(LENGTH, "5")], Some(5)), one("5"));
        assert_eq!(settled(200, &[(LENGTH, "5, 5")], Some(5)), one("5"));
        assert_eq!(
            settled(200, &[(LENGTH, "5"), (LENGTH, "5")], Some(5)),
            one("5")
        );
        assert_eq!(settled(200, &[], None), none());
        // The chunks count, and a client must not see another length.
        assert_eq!(
            settled(200, &[(LENGTH, "5"), (CODING, "Chunked")], None),
            none()
        );
        assert_eq!(settled(204, &[(LENGTH, "5")], None), none());
        // Of a body that is not there.
        assert_eq!(settled(304, &[(LENGTH, "5")], None), one("5"));
        assert_eq!(settled(304, &[(LENGTH, "5"), (LENGTH, "6")], None), none());
        for coding in ["gzip", "gzip, chunked", "chunked, chunked", "identity", ""] {
            assert_eq!(settled(200, &[(CODING, coding)], None), None, "{coding}");
        }
        assert_eq!(
            settled(200, &[(CODING, "gzip"), (CODING, "chunked")], None),
            None
        );
    }

    #[test]
    fn hosts_that_differ_are_refused() {
        let both = passed(STRANGER, "http://a/", &[("host", "a")]).unwrap();
        assert_eq!(both.uri(), "/");
        assert_eq!(field(&both, "host"), ["a"]);
        assert!(passed(STRANGER, "http://a/", &[("host", "b")]).is_err());
        assert!(passed(STRANGER, "http://u@a/", &[]).is_err());
        assert!(passed(STRANGER, "/", &[("host", "a"), ("host", "a")]).is_err());
    }
}
