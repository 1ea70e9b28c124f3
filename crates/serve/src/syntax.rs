//! The strict syntax of HTTP/1: what two parsers could read differently is refused.
//!
//! hyper parses a request after this has let it pass. Where the standard lets a server repair or guess, this
//! refuses: a proxy before us may have guessed otherwise (RFC 9112, 11.2).

use http::{HeaderMap, StatusCode};

/// A request line, beyond which it is 414; a field line, beyond which it is 431.
pub(crate) const LINE_BYTES_MAX: usize = 8190;
/// All of a head.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Fields of a head.
pub(crate) const FIELDS_MAX: usize = 100;
/// A line with the size of a chunk, its extensions included.
pub(crate) const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// A request that is not passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
}

/// The length of the body that follows a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// No body, and another protocol if the server will.
    Upgrade,
}

/// Fields that the front sets, and those that say where a message ends or who sent it. One that a gateway
/// interface cannot tell from these is refused: CGI and WSGI have `_` for `-`.
const OURS: &[&str] = &[
    "content-length",
    "transfer-encoding",
    "connection",
    "host",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
];

/// Fields that may not come after a body: they would change how the message before them is read.
const NEVER_TRAILERS: &[&str] = &[
    "content-length",
    "transfer-encoding",
    "trailer",
    "connection",
    "te",
    "upgrade",
    "host",
    "expect",
    "authorization",
    "cookie",
    "set-cookie",
    "content-type",
    "content-encoding",
    "content-range",
    "cache-control",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
];

const fn bad(reason: &'static str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        reason,
    }
}

/// RFC 9110, 5.6.2.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_token_byte)
}

/// Checks a request line, without its line end.
pub(crate) fn check_request_line(line: &[u8]) -> Result<Version, Refusal> {
    if line.len() > LINE_BYTES_MAX {
        return Err(Refusal {
            status: StatusCode::URI_TOO_LONG,
            reason: "the request line is too long",
        });
    }
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad(
            "the request line is not a method, a target and a version",
        ));
    };
    if !is_token(method) {
        return Err(bad("the method is not a token"));
    }
    if method == b"CONNECT" {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "this is not a proxy: there is no CONNECT",
        });
    }
    check_target(target, method)?;
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ if version.starts_with(b"HTTP/") => Err(Refusal {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            reason: "the version is neither HTTP/1.1 nor HTTP/1.0",
        }),
        _ => Err(bad(
            "the request line is not a method, a target and a version",
        )),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    Http10,
    Http11,
}

/// Checks the target of a request with this method.
pub(crate) fn check_target(target: &[u8], method: &[u8]) -> Result<(), Refusal> {
    // A fragment is never sent, and parsers differ in where it ends.
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(byte);
    let is_lenient = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#' && *byte != b'\\';
    let path_end = target
        .iter()
        .position(|byte| *byte == b'?')
        .unwrap_or(target.len());
    if !target[..path_end].iter().all(is_plain) || !target[path_end..].iter().all(is_lenient) {
        return Err(bad("the target has a character that must be encoded"));
    }
    let is_absolute = target
        .get(..7)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"http://"))
        || target
            .get(..8)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"https://"));
    let is_asterisk = target == b"*" && method == b"OPTIONS";
    if target.starts_with(b"/") || is_absolute || is_asterisk {
        Ok(())
    } else {
        Err(bad("the target is neither a path nor an address of http"))
    }
}

/// Checks a field line, without its line end, and gives its name in lower case and its value.
fn check_field(line: &[u8]) -> Result<(String, &[u8]), Refusal> {
    if line.len() > LINE_BYTES_MAX {
        return Err(Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "a field is too long",
        });
    }
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(bad("a field goes on in a second line"));
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.ok_or(bad("a field has no colon"))?);
    if !is_token(name) {
        return Err(bad("the name of a field is not a token"));
    }
    let value = &value[1..];
    let is_control = |byte: &u8| *byte != b'\t' && byte.is_ascii_control();
    if value.iter().any(is_control) {
        return Err(bad("a field has a control character"));
    }
    let name: String = name
        .iter()
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    check_name(&name)?;
    Ok((name, value.trim_ascii()))
}

/// Checks the name of a field, in lower case.
pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    if name.contains('_') && OURS.contains(&name.replace('_', "-").as_str()) {
        return Err(bad(
            "a field with '_' in its name could be taken for another",
        ));
    }
    Ok(())
}

/// Checks the fields of a head that has not come as lines: one of HTTP/2. They have the limits of lines.
pub(crate) fn check_fields(fields: &HeaderMap) -> Result<(), Refusal> {
    let too_large = |reason| Refusal {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        reason,
    };
    if fields.len() > FIELDS_MAX {
        return Err(too_large("there are too many fields"));
    }
    for (name, value) in fields {
        check_name(name.as_str())?;
        if name.as_str().len() + value.len() > LINE_BYTES_MAX {
            return Err(too_large("a field is too long"));
        }
    }
    Ok(())
}

/// Checks a whole head, its empty line included, and says where the message ends.
pub(crate) fn check_head(head: &[u8]) -> Result<Framing, Refusal> {
    let mut lines = Lines(head);
    let version = check_request_line(lines.next().unwrap_or(Ok(b""))?)?;
    let mut length: Option<u64> = None;
    let mut is_chunked = false;
    let mut hosts = 0;
    let mut is_upgrade = false;
    let mut fields = 0;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        fields += 1;
        if fields > FIELDS_MAX {
            return Err(Refusal {
                status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                reason: "there are too many fields",
            });
        }
        let (name, value) = check_field(line)?;
        match name.as_str() {
            "content-length" => {
                if length.is_some() {
                    return Err(bad("Content-Length is there twice"));
                }
                length = Some(decimal(value).ok_or(bad("Content-Length is not a number"))?);
            }
            "transfer-encoding" => {
                if is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("Transfer-Encoding is not one 'chunked'"));
                }
                is_chunked = true;
            }
            "upgrade" => is_upgrade = true,
            "host" => {
                hosts += 1;
                check_host(value)?;
            }
            "expect" if !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Refusal {
                    status: StatusCode::EXPECTATION_FAILED,
                    reason: "only 100-continue can be expected",
                });
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && version == Version::Http11) {
        return Err(bad("there is not one Host"));
    }
    if is_chunked && (length.is_some() || version == Version::Http10) {
        return Err(bad(
            "Transfer-Encoding stands beside Content-Length or HTTP/1.0",
        ));
    }
    Ok(if is_chunked {
        Framing::Chunked
    } else if is_upgrade && length.unwrap_or(0) == 0 {
        Framing::Upgrade
    } else {
        Framing::Length(length.unwrap_or(0))
    })
}

/// A host and a port, or nothing.
pub(crate) fn check_host(value: &[u8]) -> Result<(), Refusal> {
    let is_host_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%:[]".contains(byte);
    if value.iter().all(is_host_byte) {
        Ok(())
    } else {
        Err(bad("Host has a character that no name has"))
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    let is_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

/// The size in a chunk's line, which is without its line end.
pub(crate) fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let end = line
        .iter()
        .position(|byte| *byte == b';')
        .unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let is_size = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    if !is_size || extension.iter().any(|byte| byte.is_ascii_control()) {
        return Err(bad("a chunk has no proper size"));
    }
    let digits = std::str::from_utf8(digits).unwrap_or_default();
    u64::from_str_radix(digits, 16).map_err(|_| bad("a chunk has no proper size"))
}

/// Checks a field that comes after a chunked body.
pub(crate) fn check_trailer(line: &[u8]) -> Result<(), Refusal> {
    let (name, _) = check_field(line)?;
    check_trailer_name(&name)
}

/// Checks the name of such a field, in lower case.
pub(crate) fn check_trailer_name(name: &str) -> Result<(), Refusal> {
    let read_as = name.replace('_', "-");
    if NEVER_TRAILERS.contains(&read_as.as_str()) {
        return Err(bad("a trailer may not have this name"));
    }
    Ok(())
}

/// Lines that end with CR and LF; no other CR or LF may be there.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = self.0.split_at(end + 1);
        self.0 = rest;
        Some(line_of(line))
    }
}

/// A line without its CR and LF.
pub(crate) fn line_of(line: &[u8]) -> Result<&[u8], Refusal> {
    let line = line
        .strip_suffix(b"\r\n")
        .ok_or(bad("a line ends without CR"))?;
    if line.contains(&b'\r') || line.contains(&0) {
        return Err(bad("a line has a CR or a null byte in it"));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> Result<Framing, u16> {
        check_head(head.as_bytes()).map_err(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn ordinary_heads_pass() {
        let get = "GET /a?b=c HTTP/1.1\r\nHost: x:80\r\nA:b\r\nC: \t d \r\n\r\n";
        assert_eq!(status(get), Ok(Framing::Length(0)));
        let post = "POST / HTTP/1.1\r\nhost: [::1]\r\ncontent-length: 12\r\n\r\n";
        assert_eq!(status(post), Ok(Framing::Length(12)));
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(status(chunked), Ok(Framing::Chunked));
        assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(
            status("OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n"),
            Ok(Framing::Length(0))
        );
        assert_eq!(
            status("GET http://x/?q={a} HTTP/1.1\r\nHost: x\r\n\r\n"),
            Ok(Framing::Length(0))
        );
    }

    /// What two parsers read differently: each is answered with this status.
    const SMUGGLED: &[(&str, u16)] = &[
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: 5, 5", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: -5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: 5 5", 400),
        ("Content-Length:", 400),
        ("Content-Length: 99999999999999999999", 400),
        ("Content-Length : 5", 400),
        ("Content-Length\t: 5", 400),
        (" Content-Length: 5", 400),
        ("Content_Length: 5", 400),
        ("X: y\r\n Content-Length: 5", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding: chunked, identity", 400),
        ("Transfer-Encoding: identity, chunked", 400),
        ("Transfer-Encoding: gzip, chunked", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            400,
        ),
        ("Transfer-Encoding: \"chunked\"", 400),
        ("Transfer-Encoding: chunked;q=1", 400),
        ("Transfer-Encoding:\u{b}chunked", 400),
        ("Transfer-Encoding : chunked", 400),
        ("Transfer_Encoding: chunked", 400),
        ("Transfer-Encoding:\r\n chunked", 400),
        ("Transfer-Encoding: chunked\r", 400),
        ("X: a\nTransfer-Encoding: chunked", 400),
        ("X: a\rTransfer-Encoding: chunked", 400),
        ("X: a\0b", 400),
        ("X\0: a", 400),
        ("X", 400),
        (": a", 400),
        ("Host: y", 400),
        ("X_Forwarded_For: 1.2.3.4", 400),
        ("X-Forwarded_For: 1.2.3.4", 400),
        ("Expect: 200-ok", 417),
    ];

    #[test]
    fn ambiguous_fields_are_refused() {
        for (fields, wanted) in SMUGGLED {
            let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
            assert_eq!(status(&head), Err(*wanted), "{fields:?}");
        }
    }

    #[test]
    fn ambiguous_request_lines_are_refused() {
        for (line, wanted) in [
            ("GET  / HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            (" GET / HTTP/1.1", 400),
            ("GET\t/ HTTP/1.1", 400),
            ("GET / HTTP/1.1\0", 400),
            ("GET /a#b HTTP/1.1", 400),
            ("GET /a b HTTP/1.1", 400),
            ("GET /\u{e9} HTTP/1.1", 400),
            ("GET /a\\b HTTP/1.1", 400),
            ("GET a HTTP/1.1", 400),
            ("GET * HTTP/1.1", 400),
            ("G=T / HTTP/1.1", 400),
            ("GET /", 400),
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/0.9", 505),
            ("GET / http/1.1", 400),
            ("CONNECT x:1 HTTP/1.1", 405),
        ] {
            let head = format!("{line}\r\nHost: x\r\n\r\n");
            assert_eq!(status(&head), Err(wanted), "{line:?}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), Err(400), "no host");
        assert_eq!(
            status("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(400)
        );
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), Err(400));
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"), Err(400));
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"), Err(400));
    }

    #[test]
    fn what_is_too_long_is_said_to_be() {
        let long = "a".repeat(LINE_BYTES_MAX + 1);
        let head = format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(status(&head), Err(414));
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n");
        assert_eq!(status(&head), Err(431));
        let many = "X: y\r\n".repeat(FIELDS_MAX);
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n");
        assert_eq!(status(&head), Err(431));
    }

    #[test]
    fn sizes_of_chunks() {
        let size = |line: &str| chunk_size(line.as_bytes()).ok();
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("1aF"), Some(0x1af));
        assert_eq!(size("5;name=value"), Some(5));
        for wrong in [
            "",
            "+5",
            "0x5",
            "5 ",
            " 5",
            "5\t",
            "g",
            "fffffffffffffffff",
            "5;\u{1}",
        ] {
            assert_eq!(size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn trailers_change_nothing_of_their_message() {
        assert!(check_trailer(b"X-Checksum: 5").is_ok());
        for wrong in [
            "Content-Length: 5",
            "Transfer_Encoding: chunked",
            "Host: x",
            " x: y",
        ] {
            assert!(check_trailer(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
