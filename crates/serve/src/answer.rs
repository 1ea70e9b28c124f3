//! Answers of the front itself: a line of text, or JSON for those who ask for it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::fork::Ending;
use crate::head::X_REQUEST_ID;
use crate::metrics::Outcome;
use crate::syntax::Refusal;

/// The reason that a request has no answer of the program's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) reason: String,
    pub(crate) outcome: Outcome,
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            outcome,
            retry_after: None,
        }
    }

    /// For a request that may succeed a little later.
    pub(crate) fn busy(reason: &str) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Outcome::Full, reason)
        }
    }

    /// For a request that is for none of the programs.
    pub(crate) fn no_route() -> Self {
        let reason = "no program is served at this host and path";
        Self::new(StatusCode::NOT_FOUND, Outcome::Refused, reason)
    }

    /// For a path that two programs could each take for theirs.
    pub(crate) fn unclear_path() -> Self {
        let reason = "the path goes up by '..', and several programs share it";
        Self::new(StatusCode::BAD_REQUEST, Outcome::Refused, reason)
    }

    /// A fork has ended before its answer was complete.
    pub(crate) fn of_ending(ending: &Ending) -> Self {
        let bad = StatusCode::BAD_GATEWAY;
        match ending {
            Ending::Done => Self::new(bad, Outcome::Invalid, "the program gave no answer"),
            Ending::TimedOut => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                Outcome::Deadline,
                "the program has not answered in time",
            ),
            Ending::Crashed(how) => {
                Self::new(bad, Outcome::Crash, format!("the program has ended: {how}"))
            }
            Ending::Memory(how) => Self::new(bad, Outcome::Memory, how.clone()),
            Ending::NotListening => Self::new(
                bad,
                Outcome::Invalid,
                "the program takes no connection any more",
            ),
            Ending::Failed(_) => Self::new(bad, Outcome::Error, "kvmlet could not run the program"),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.status, Outcome::Refused, refusal.reason)
    }
}

/// The answer to a request with these fields.
pub(crate) fn answer(failure: &Failure, id: &str, accept: &HeaderMap) -> Response<Full<Bytes>> {
    let status = failure.status;
    let (kind, body) = if wants_json(accept) {
        let reason = json_string(&failure.reason);
        let body = format!(
            "{{\"status\":{},\"error\":{reason},\"outcome\":\"{}\",\"request_id\":{}}}\n",
            status.as_u16(),
            failure.outcome.name(),
            json_string(id),
        );
        ("application/json", body)
    } else {
        let title = status.canonical_reason().unwrap_or("error");
        let body = format!(
            "{} {title}: {}\nrequest id: {id}\n",
            status.as_u16(),
            failure.reason
        );
        ("text/plain; charset=utf-8", body)
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(X_REQUEST_ID, id);
    }
    if let Some(after) = failure.retry_after {
        headers.insert(header::RETRY_AFTER, after.as_secs().max(1).into());
    }
    response
}

/// True if the client names JSON, and does not refuse it.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut words = range.split(';').map(str::trim);
            let kind = words.next().unwrap_or_default();
            let is_json = kind.eq_ignore_ascii_case("application/json")
                || kind.eq_ignore_ascii_case("application/problem+json");
            is_json && !words.any(|word| matches!(word, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
}

/// A string of JSON.
pub(crate) fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for char in text.chars() {
        match char {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            char if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') => {
                json.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => json.push(char),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        headers
    }

    #[test]
    fn json_is_for_those_who_name_it() {
        assert!(wants_json(&accepting("text/html, application/json;q=0.5")));
        assert!(!wants_json(&accepting("*/*")));
        assert!(!wants_json(&accepting("application/json; q=0")));
        assert!(!wants_json(&HeaderMap::new()));
    }

    #[test]
    fn strings_of_json_are_one_line() {
        assert_eq!(
            json_string("a\"b\\c\n\u{7f}é"),
            "\"a\\\"b\\\\c\\u000a\\u007fé\""
        );
    }

    #[test]
    fn full_says_when_to_come_again() {
        let response = answer(&Failure::busy("full"), "id", &HeaderMap::new());
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()["x-request-id"], "id");
    }
}
