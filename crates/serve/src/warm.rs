//! Requests that a program answers before it is frozen, so that its forks are warm.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use tokio::runtime::Handle;

use crate::body::{RequestBody, with_length};
use crate::exchange::ask_directly;
use crate::fork::{BootError, Ending, Output, Program};
use crate::syntax;
use crate::wire::wire;

/// Bytes of a failed answer that are shown.
const SHOWN_BYTES: usize = 300;

/// A request to warm a program up with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WarmupRequest {
    line: String,
    method: Method,
    target: http::Uri,
    headers: HeaderMap,
    body: Bytes,
    status: Option<StatusCode>,
}

impl WarmupRequest {
    /// Of `METHOD PATH`, fields `Name: value`, a body, and the status that is expected: any below 400 if none is
    /// said.
    ///
    /// # Errors
    /// In words.
    pub fn new(
        line: &str,
        fields: &[String],
        body: Vec<u8>,
        status: Option<u16>,
    ) -> Result<Self, String> {
        let wrong = || format!("'{line}' is not a method and a path");
        syntax::check_request_line(format!("{line} HTTP/1.1").as_bytes()).map_err(|_| wrong())?;
        let (method, target) = line.split_once(' ').ok_or_else(wrong)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        for field in fields {
            let wrong = || format!("'{field}' is not a field: Name: value");
            let (name, value) = field.split_once(':').ok_or_else(wrong)?;
            let name: HeaderName = name.parse().map_err(|_| wrong())?;
            let value: HeaderValue = value.trim().parse().map_err(|_| wrong())?;
            let is_ours = [
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                header::CONNECTION,
            ];
            if is_ours.contains(&name) {
                return Err(format!("'{name}' is set by kvmlet"));
            }
            if name == header::HOST {
                headers.insert(name, value);
            } else {
                headers.append(name, value);
            }
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let status = match status {
            Some(status) => {
                Some(StatusCode::from_u16(status).map_err(|_| format!("{status} is no status"))?)
            }
            None => None,
        };
        Ok(Self {
            line: line.to_owned(),
            method: method.parse().map_err(|_| wrong())?,
            target: target.parse().map_err(|_| wrong())?,
            headers,
            body: Bytes::from(body),
            status,
        })
    }

    fn request(&self) -> Request<RequestBody> {
        let mut head = Request::new(());
        *head.method_mut() = self.method.clone();
        *head.uri_mut() = self.target.clone();
        *head.headers_mut() = self.headers.clone();
        with_length(head, RequestBody::of(&self.body))
    }
}

/// Has the program answer one of them.
pub(crate) fn warm(
    program: &mut dyn Program,
    warmup: &WarmupRequest,
    timeout: Duration,
    runtime: &Handle,
    output: &mut dyn Output,
) -> Result<(), BootError> {
    let failed = |how: String| {
        let message = format!("the warm-up request '{}' {how}", warmup.line);
        Err(BootError::new("warmup", message))
    };
    let (front_end, handle, program_end) = wire(Instant::now().checked_add(timeout), None);
    let request = warmup.request();
    let asked = runtime.spawn(async move {
        let answer = ask_directly(front_end, request, SHOWN_BYTES).await;
        handle.finish();
        answer
    });
    program_end.set_waker(Some(program.waker()));
    let ending = program.serve(&program_end, output);
    program_end.set_waker(None);
    program_end.end_output();
    let answer = runtime.block_on(asked);
    match ending {
        Ending::Done => {}
        Ending::TimedOut => return failed("was not answered in time".to_owned()),
        Ending::Crashed(how) => return failed(format!("ended the program: {how}")),
        Ending::Memory(how) | Ending::Failed(how) => return failed(format!("failed: {how}")),
        Ending::NotListening => return failed("was not accepted".to_owned()),
    }
    let (parts, body) = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(how)) => return failed(format!("got no answer of HTTP: {how}")),
        Err(_) => return failed("failed: a fault in kvmlet".to_owned()),
    };
    let is_expected = match warmup.status {
        Some(status) => parts.status == status,
        None => parts.status.as_u16() < 400,
    };
    if is_expected {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&body);
    let shown: Vec<&str> = body.split_whitespace().collect();
    failed(format!(
        "was answered with {}: {}",
        parts.status,
        shown.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked() {
        let new = |line: &str, field: &str| {
            WarmupRequest::new(line, &[field.to_owned()], Vec::new(), Some(200))
        };
        let request = new("POST /a?b", "X-A:  b ").unwrap().request();
        assert_eq!(request.uri(), "/a?b");
        assert_eq!(request.headers()["x-a"], "b");
        assert_eq!(request.headers()["host"], "localhost");
        for (line, field) in [
            ("POST", "a: b"),
            ("GET a", "a: b"),
            ("GET / x", "a: b"),
            ("GET /", "a"),
            ("GET /", "a b: c"),
            ("GET /", "Connection: x"),
        ] {
            assert!(new(line, field).is_err(), "{line} {field}");
        }
        assert!(WarmupRequest::new("GET /", &[], Vec::new(), Some(99)).is_err());
    }
}
