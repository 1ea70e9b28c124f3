//! A line for each request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::answer::json_string;
use crate::metrics::{Outcome, seconds};

/// The form of the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessLog {
    /// No lines.
    Off,
    /// The common log format, then the request's id, its outcome and its fork, the pages that were reset, and
    /// times in microseconds: in the queue, in the fork, and of the reset; last the program, if it has a name.
    Common,
    /// An object of JSON.
    Json,
}

/// Facts about a request that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Empty if it is the only one, or is not known.
    pub(crate) program: String,
    pub(crate) peer: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: &'static str,
    pub(crate) begun: SystemTime,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    pub(crate) id: String,
    pub(crate) outcome: Outcome,
    /// What a fork did for it, if one took it.
    pub(crate) work: Option<Work>,
}

/// What a fork did for a request.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Work {
    pub(crate) fork: usize,
    pub(crate) queued: Duration,
    pub(crate) ran: Duration,
    pub(crate) reset: Option<(Duration, u64)>,
}

/// What is too long for a line of a log is cut.
const TARGET_BYTES_MAX: usize = 2048;

impl AccessLog {
    pub(crate) fn line(self, record: &Record) -> Option<String> {
        match self {
            Self::Off => None,
            Self::Common => Some(common(record)),
            Self::Json => Some(json(record)),
        }
    }
}

fn us(time: Duration) -> u128 {
    time.as_micros()
}

fn common(record: &Record) -> String {
    let mut line = common_format(record);
    if !record.program.is_empty() {
        line.push(' ');
        line.push_str(&record.program);
    }
    line
}

fn common_format(record: &Record) -> String {
    let request = format!("{} {} {}", record.method, target(record), record.version);
    let request = request.replace('\\', "\\\\").replace('"', "\\\"");
    let start = format!(
        "{} - - [{}] \"{}\" {} {} {} {}",
        record.peer,
        common_date(record.begun),
        crate::log::printable(&request),
        record.status,
        record.bytes,
        record.id,
        record.outcome.name(),
    );
    let Some(work) = record.work else {
        return format!("{start} - - - - -");
    };
    let (pages, reset) = match work.reset {
        Some((time, pages)) => (pages.to_string(), us(time).to_string()),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let (queued, ran) = (us(work.queued), us(work.ran));
    format!("{start} {} {pages} {queued} {ran} {reset}", work.fork)
}

fn target(record: &Record) -> &str {
    let most = TARGET_BYTES_MAX.min(record.target.len());
    let end = (0..=most)
        .rev()
        .find(|end| record.target.is_char_boundary(*end));
    &record.target[..end.unwrap_or(0)]
}

fn json(record: &Record) -> String {
    let since = record.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = seconds(u64::try_from(since.as_micros()).unwrap_or(0));
    let mut line = format!(
        "{{\"time\":{time},\"peer\":{},\"method\":{},\"target\":{},\"version\":\"{}\",\"status\":{},\
         \"bytes\":{},\"request_id\":{},\"outcome\":\"{}\"",
        json_string(&record.peer),
        json_string(&record.method),
        json_string(target(record)),
        record.version,
        record.status,
        record.bytes,
        json_string(&record.id),
        record.outcome.name(),
    );
    if !record.program.is_empty() {
        line.push_str(&format!(",\"program\":{}", json_string(&record.program)));
    }
    if let Some(work) = record.work {
        line.push_str(&format!(
            ",\"fork\":{},\"queue_us\":{},\"run_us\":{}",
            work.fork,
            us(work.queued),
            us(work.ran)
        ));
        if let Some((time, pages)) = work.reset {
            line.push_str(&format!(
                ",\"reset_us\":{},\"pages_reset\":{pages}",
                us(time)
            ));
        }
    }
    line.push('}');
    line
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// `29/Nov/2026:12:00:00 +0000`.
fn common_date(time: SystemTime) -> String {
    let since = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, second) = (since / 86_400, since % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{day:02}/{}/{year}:{:02}:{:02}:{:02} +0000",
        MONTHS[month],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month from 0 and day from 1 of a day since 1970.
fn civil(days: u64) -> (u64, usize, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // 400 years have 146,097 days.
    let (mut year, mut left) = (1970 + days / 146_097 * 400, days % 146_097);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in lengths.into_iter().enumerate() {
        if left < length {
            return (year, month, left + 1);
        }
        left -= length;
    }
    (year, 11, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            program: String::new(),
            peer: "1.2.3.4".to_owned(),
            method: "GET".to_owned(),
            target: "/a\"b\n".to_owned(),
            version: "HTTP/1.1",
            begun: UNIX_EPOCH + Duration::from_secs(1_795_953_600),
            status: 200,
            bytes: 12,
            id: "id".to_owned(),
            outcome: Outcome::Ok,
            work: Some(Work {
                fork: 3,
                queued: Duration::from_micros(4),
                ran: Duration::from_micros(5),
                reset: Some((Duration::from_micros(6), 7)),
            }),
        }
    }

    #[test]
    fn the_common_format_stays_one_line() {
        assert_eq!(
            AccessLog::Common.line(&record()).unwrap(),
            "1.2.3.4 - - [29/Nov/2026:12:00:00 +0000] \"GET /a\\\"b\\x0a HTTP/1.1\" 200 12 id ok 3 7 4 5 6"
        );
        let record = Record {
            work: None,
            ..record()
        };
        assert!(common(&record).ends_with(" 200 12 id ok - - - - -"));
        assert_eq!(AccessLog::Off.line(&record), None);
        let record = Record {
            program: "shop".to_owned(),
            ..record
        };
        assert!(common(&record).ends_with(" id ok - - - - - shop"));
        assert!(json(&record).ends_with(",\"program\":\"shop\"}"));
    }

    #[test]
    fn json_is_an_object() {
        assert_eq!(
            AccessLog::Json.line(&record()).unwrap(),
            "{\"time\":1795953600,\"peer\":\"1.2.3.4\",\"method\":\"GET\",\"target\":\"/a\\\"b\\u000a\",\
             \"version\":\"HTTP/1.1\",\"status\":200,\"bytes\":12,\"request_id\":\"id\",\"outcome\":\"ok\",\
             \"fork\":3,\"queue_us\":4,\"run_us\":5,\"reset_us\":6,\"pages_reset\":7}"
        );
    }

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 0, 1));
        assert_eq!(civil(11_016), (2000, 1, 29));
        assert_eq!(civil(20_786), (2026, 10, 29));
        assert_eq!(civil(47_540), (2100, 1, 28));
        assert_eq!(civil(47_541), (2100, 2, 1));
    }
}
