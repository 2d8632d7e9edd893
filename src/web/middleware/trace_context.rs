//! Reads the client's trace (W3C Trace Context, `traceparent`) for the log and for exported
//! traces. The service itself sends no `traceparent`, neither to NVIDIA nor to hosts of pictures.

use axum::http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The length of a header of version 00, in bytes. Headers of later versions are at least as long.
const LENGTH: usize = 55;

/// The flag that a client sets if it records the trace. This service ignores the other flags.
const SAMPLED: u8 = 1;

/// The trace that a request belongs to, and the span that sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TraceContext {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// Whether the client records this trace.
    pub is_sampled: bool,
}

impl TraceContext {
    /// Reads the trace from the headers. Returns `None` if there is no `traceparent`, if there are
    /// several, or if it is invalid.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.to_str().ok()?),
            _ => None,
        }
    }

    /// Parses a header by section 3.2 of the specification: `<version>-<trace>-<span>-<flags>`.
    /// Versions after 00 may append fields.
    fn parse(text: &str) -> Option<Self> {
        let (first_fields, rest) = text.split_at_checked(LENGTH)?;
        let mut fields = first_fields.split('-');
        let mut next_field = |length| fields.next().filter(|field| is_hex(field, length));
        let version = next_field(2).filter(|version| *version != "ff")?;
        let trace_id = next_field(32).filter(|id| !is_zero(id))?;
        let span_id = next_field(16).filter(|id| !is_zero(id))?;
        // The four fields and three hyphens have exactly `LENGTH` bytes, so `first_fields` has no
        // fifth field.
        let flags = u8::from_str_radix(next_field(2)?, 16).ok()?;
        if rest.is_empty() || (version != "00" && rest.starts_with('-')) {
            Some(Self {
                trace_id: trace_id.into(),
                span_id: span_id.into(),
                is_sampled: flags & SAMPLED != 0,
            })
        } else {
            None
        }
    }
}

/// Whether the text consists of `length` hexadecimal digits in lower case, which the specification
/// requires.
fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_zero(id: &str) -> bool {
    id.bytes().all(|byte| byte == b'0')
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn valid_headers_of_version_00_and_later_versions_are_read() {
        for (text, is_sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-ff"), true),
            (format!("00-{TRACE}-{SPAN}-fe"), false),
            (format!("01-{TRACE}-{SPAN}-00"), false),
            (format!("fe-{TRACE}-{SPAN}-01-"), true),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), true),
            (format!("cc-{TRACE}-{SPAN}-01-WHATEVER ÿ"), true),
        ] {
            let expected =
                TraceContext { trace_id: TRACE.into(), span_id: SPAN.into(), is_sampled };
            assert_eq!(TraceContext::parse(&text), Some(expected), "{text}");
        }
    }

    #[test]
    fn invalid_headers_are_ignored() {
        let zeros = |length| "0".repeat(length);
        for text in [
            String::new(),
            // The standard forbids the version ff, and ids of zeros.
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", zeros(32)),
            format!("00-{TRACE}-{}-01", zeros(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("0A-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-011"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("cc-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("0-0{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}{SPAN}--01"),
            format!("00-{SPAN}-{TRACE}-01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{}g-{SPAN}-01", &TRACE[1..]),
            "é".repeat(LENGTH), // a split at `LENGTH` would cut a character
        ] {
            assert_eq!(TraceContext::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn the_trace_is_read_only_if_there_is_exactly_one_traceparent_header() {
        let value = format!("00-{TRACE}-{SPAN}-01").parse::<HeaderValue>().unwrap();
        let one = HeaderMap::from_iter([(TRACEPARENT, value)]);
        let mut two = one.clone();
        two.append(TRACEPARENT, one[TRACEPARENT].clone());
        assert!(TraceContext::of(&one).is_some());
        assert_eq!(TraceContext::of(&two), None);
        assert_eq!(TraceContext::of(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn every_valid_header_is_read(
            version in 0u8..0xff, trace in 1u128.., span in 1u64.., flags in any::<u8>(),
        ) {
            let text = format!("{version:02x}-{trace:032x}-{span:016x}-{flags:02x}");
            let context = TraceContext::parse(&text).unwrap();
            prop_assert_eq!(context.trace_id, format!("{trace:032x}"));
            prop_assert_eq!(context.span_id, format!("{span:016x}"));
            prop_assert_eq!(context.is_sampled, flags % 2 == 1);
        }

        #[test]
        fn a_header_with_one_changed_character_is_ignored_or_read_as_changed(
            index in 0usize..LENGTH, character in any::<char>(), trace in 1u128.., span in 1u64..,
        ) {
            let text = format!("00-{trace:032x}-{span:016x}-01");
            let mut changed: Vec<_> = text.chars().collect();
            changed[index] = character;
            let changed: String = changed.into_iter().collect();
            if let Some(context) = TraceContext::parse(&changed) {
                let ids = format!("-{}-{}-", context.trace_id, context.span_id);
                prop_assert!(changed.contains(&ids));
                // The new character is a hyphen in the place of a hyphen, or a digit in the place of a digit.
                prop_assert!(character == '-' || matches!(character, '0'..='9' | 'a'..='f'));
            }
        }

        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = TraceContext::parse(&text);
        }
    }
}
