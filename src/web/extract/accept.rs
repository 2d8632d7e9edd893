//! Reads which of the metrics' formats a collector wants (RFC 9110, section 12.5.1).

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
};

use super::parameters::Parameterized;
use crate::telemetry::Exposition;

/// The format to answer in: Prometheus' text where it is wanted more, else OpenMetrics.
pub(in crate::web) struct Accepted(pub(in crate::web) Exposition);

impl<S: Sync> FromRequestParts<S> for Accepted {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(choose(&parts.headers)))
    }
}

/// How much a media type is wanted: the weight in thousandths, then how exactly it is named, since
/// nobody names one and wants whatever else there is as much.
type Wish = (u16, u8);

fn choose(headers: &HeaderMap) -> Exposition {
    let lines = headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes);
    let ranges = lines.flat_map(|line| line.split(|byte| *byte == b','));
    let (mut open_metrics, mut prometheus) = (Best::default(), Best::default());
    for range in ranges.map(Parameterized::parse) {
        let Some(weight) = weight(&range) else { continue };
        open_metrics.meet(
            &range,
            weight,
            &["*/*", "application/*", "application/openmetrics-text"],
        );
        prometheus.meet(&range, weight, &["*/*", "text/*", "text/plain"]);
    }
    if prometheus.wish() > open_metrics.wish() {
        Exposition::Prometheus
    } else {
        Exposition::OpenMetrics
    }
}

/// The weight of the most exact range so far that holds a media type.
#[derive(Default)]
struct Best {
    exactness: u8,
    weight: u16,
}

impl Best {
    /// Looks at one more range. `names` hold the media type, the least exact first.
    fn meet(&mut self, range: &Parameterized<'_>, weight: u16, names: &[&str]) {
        let Some((exactness, _)) = (1..).zip(names).find(|(_, name)| range.is(name)) else {
            return;
        };
        // Of several versions of one type, whichever is wanted most.
        if (exactness, weight) > (self.exactness, self.weight) {
            *self = Self { exactness, weight };
        }
    }

    fn wish(&self) -> Wish {
        // What is refused by name is not wanted more than what is not named.
        if self.weight == 0 { (0, 0) } else { (self.weight, self.exactness) }
    }
}

/// The weight of a range, in thousandths; none where it makes no sense.
fn weight(range: &Parameterized<'_>) -> Option<u16> {
    let Some(text) = range.get("q") else { return Some(1000) };
    let weight: f32 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (0.0..=1.0).contains(&weight).then_some((weight * 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_prometheus(accept: &[&str]) -> bool {
        let values = accept.iter().map(|value| (header::ACCEPT, value.parse().unwrap()));
        choose(&values.collect()) == Exposition::Prometheus
    }

    #[test]
    fn whoever_wants_plain_text_more_gets_it() {
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
            assert!(is_prometheus(accept), "{accept:?}");
        }
    }

    #[test]
    fn everybody_else_gets_openmetrics() {
        // Prometheus 2 and 3, and a browser.
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
            assert!(!is_prometheus(accept), "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(accept in "[ -~]{0,60}") {
            let _ = is_prometheus(&[&accept]);
        }
    }
}
