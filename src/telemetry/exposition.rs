//! The two text formats of metrics: OpenMetrics, and Prometheus' older text format, which some
//! collectors still require.

use std::fmt::Write;

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Prometheus,
}

impl Exposition {
    /// The `Content-Type` of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics text into Prometheus' text format. The text must come from the encoder of
/// `prometheus-client`. The samples stay the same. The name in the lines `# HELP` and `# TYPE` gets
/// the suffix of the samples (`_total`, `_info`). The type `info` becomes `gauge`, and `unknown` becomes
/// `untyped`. The lines `# UNIT` and `# EOF` are removed.
pub(super) fn to_prometheus(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // `# HELP` precedes `# TYPE`, but the type decides which suffix the name in `# HELP` gets. So the
    // help is kept until `# TYPE`.
    let mut help = "";
    for line in text.lines() {
        if let Some(name_and_help) = line.strip_prefix("# HELP ") {
            help = name_and_help.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, metric_type)) =
            line.strip_prefix("# TYPE ").and_then(|words| words.split_once(' '))
        {
            let (suffix, metric_type) = match metric_type {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            // Writing to a string cannot fail.
            let _ =
                writeln!(out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {metric_type}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_text_is_converted_to_prometheus_text() {
        let open_metrics = "\
# HELP a_seconds Time.
# TYPE a_seconds histogram
# UNIT a_seconds seconds
a_seconds_sum 0.5
a_seconds_bucket{le=\"+Inf\"} 1
# HELP b Things.
# TYPE b counter
b_total{x=\"# HELP\"} 2
# HELP c Build.
# TYPE c info
c_info{version=\"1\"} 1
# HELP d Now.
# TYPE d gauge
d 3
# EOF
";
        let prometheus = "\
# HELP a_seconds Time.
# TYPE a_seconds histogram
a_seconds_sum 0.5
a_seconds_bucket{le=\"+Inf\"} 1
# HELP b_total Things.
# TYPE b_total counter
b_total{x=\"# HELP\"} 2
# HELP c_info Build.
# TYPE c_info gauge
c_info{version=\"1\"} 1
# HELP d Now.
# TYPE d gauge
d 3
";
        assert_eq!(to_prometheus(open_metrics), prometheus);
    }
}
