//! Reads from `Accept` which format of metrics a client prefers (RFC 9110, section 12.5.1).

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
};

use super::parameters::Parameterized;
use crate::telemetry::Exposition;

/// The format of the response: Prometheus' text format if the client prefers it, otherwise
/// OpenMetrics.
pub(in crate::web) struct Accepted(pub(in crate::web) Exposition);

impl<S: Sync> FromRequestParts<S> for Accepted {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(preferred_format(&parts.headers)))
    }
}

/// How much a client prefers a media type. The order of the fields matters: the weights are compared
/// first. If they are equal, the client prefers the type that its header names more specifically.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    /// The weight in thousandths.
    weight: u16,
    /// As in [`BestMatch`], but 0 for a type that the client refuses.
    specificity: u8,
}

fn preferred_format(headers: &HeaderMap) -> Exposition {
    let lines = headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes);
    let ranges = lines.flat_map(|line| line.split(|byte| *byte == b','));
    let (mut open_metrics, mut prometheus) = (BestMatch::default(), BestMatch::default());
    for range in ranges.map(Parameterized::parse) {
        let Some(weight) = parse_weight(&range) else { continue };
        open_metrics.consider(
            &range,
            weight,
            &["*/*", "application/*", "application/openmetrics-text"],
        );
        prometheus.consider(&range, weight, &["*/*", "text/*", "text/plain"]);
    }
    if prometheus.preference() > open_metrics.preference() {
        Exposition::Prometheus
    } else {
        Exposition::OpenMetrics
    }
}

/// The most specific range of the header that matches a media type. If no range matches, all fields
/// are 0.
#[derive(Default)]
struct BestMatch {
    /// 1 for `*/*`, 2 for `type/*`, 3 for `type/subtype`.
    specificity: u8,
    /// The weight in thousandths.
    weight: u16,
}

impl BestMatch {
    /// Replaces the best match by a range of the header if that is a better match: a more specific one, or
    /// an equally specific one with a higher weight. `matching` lists the three ranges that
    /// can match the media type, the least specific first.
    fn consider(&mut self, range: &Parameterized<'_>, weight: u16, matching: &[&str]) {
        let Some((specificity, _)) = (1..).zip(matching).find(|(_, name)| range.is(name)) else {
            return;
        };
        // A client may list several versions of one type, each with a weight.
        if (specificity, weight) > (self.specificity, self.weight) {
            *self = Self { specificity, weight };
        }
    }

    fn preference(&self) -> Preference {
        // Weight 0 means that the client refuses the type. A refused type counts like one that the
        // header does not list.
        let specificity = if self.weight == 0 { 0 } else { self.specificity };
        Preference { weight: self.weight, specificity }
    }
}

/// The weight of a range in thousandths, or `None` if the weight is invalid.
fn parse_weight(range: &Parameterized<'_>) -> Option<u16> {
    let Some(text) = range.get("q") else { return Some(1000) };
    let fraction: f32 = std::str::from_utf8(text).ok()?.parse().ok()?;
    if (0.0..=1.0).contains(&fraction) { Some((fraction * 1000.0) as u16) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gets_prometheus(accept: &[&str]) -> bool {
        let values = accept.iter().map(|value| (header::ACCEPT, value.parse().unwrap()));
        preferred_format(&values.collect()) == Exposition::Prometheus
    }

    #[test]
    fn clients_that_prefer_plain_text_get_the_prometheus_format() {
        for accept in [
            &["text/plain"][..],
            &["text/plain; version=0.0.4; charset=utf-8"],
            &["Text/Plain ; q=0.1"],
            &["text/*"],
            &["text/plain, */*"],
            &["text/plain;q=0.9, */*;q=0.9"],
            &["text/plain;version=0.0.4;q=1,*/*;q=0.1"],
            &["application/openmetrics-text;q=0.4, text/plain;q=0.5"],
            &["application/openmetrics-text;q=0, text/plain;q=0.1"],
            &["application/openmetrics-text;q=0, */*;q=0.1"],
            &["application/openmetrics-text;q=0.4", "text/plain"],
        ] {
            assert!(gets_prometheus(accept), "{accept:?}");
        }
    }

    #[test]
    fn all_other_clients_get_openmetrics() {
        // The headers of Prometheus 2, Prometheus 3 and a browser.
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let browser =
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";
        for accept in [
            &[][..],
            &[""],
            &["*/*"],
            &["application/json"],
            &["application/*, text/*"],
            &["application/openmetrics-text, text/plain"],
            &["text/plain;q=0.5, */*;q=0.8"],
            &["text/plain;q=0"],
            &["text/plain;q=0, */*;q=0"],
            &["text/plain;q=2"],
            &["text/plain;q=-1"],
            &["text/plain;q=NaN"],
            &["text/plain;q=x"],
            &["text/plainer"],
            &[prometheus_2],
            &[prometheus_3],
            &[browser],
        ] {
            assert!(!gets_prometheus(accept), "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(accept in "[ -~]{0,60}") {
            let _ = gets_prometheus(&[&accept]);
        }
    }
}
